#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "common/bind.h"
#include "inner_search/inner_search.h"

namespace hwnas::inner_search {

namespace py = pybind11;

namespace {

// table, first, limits; layers, metrics, objectives
using ProblemTuple = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, int, int, int>;
// population, crossover, mutation, seed, generation
using VariationTuple = std::tuple<std::int64_t, double, double, std::uint64_t, std::uint64_t>;

Problem make_problem(const ProblemTuple& t) {
    return {address<const double>(std::get<0>(t)), address<const std::int64_t>(std::get<1>(t)), address<const double>(std::get<2>(t)),
            std::get<3>(t), std::get<4>(t), std::get<5>(t)};
}

Variation make_variation(const VariationTuple& t) { return {std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t), std::get<4>(t)}; }

// Values and genotypes as bytes, for numpy to read.
py::tuple front_bytes(const Front& front) {
    return py::make_tuple(py::bytes(reinterpret_cast<const char*>(front.values.data()), front.values.size() * sizeof(double)),
                          py::bytes(reinterpret_cast<const char*>(front.genotypes.data()), front.genotypes.size() * sizeof(Option)));
}

}  // namespace

void bind(py::module_& module) {
    auto m = module.def_submodule("inner_search");
    m.attr("max_metrics") = kMaxMetrics;
    m.attr("fitness_bytes") = sizeof(Fitness);
    m.def("score_cpu", [](const ProblemTuple& p, std::uintptr_t genotypes, std::int64_t count, std::uintptr_t values, int threads) {
        const py::gil_scoped_release release;
        score_cpu(make_problem(p), address<const Option>(genotypes), count, address<double>(values), threads);
    });
    m.def("sample_cpu", [](const ProblemTuple& p, const VariationTuple& v, std::uintptr_t genotypes, int threads) {
        const py::gil_scoped_release release;
        sample_cpu(make_problem(p), make_variation(v), address<Option>(genotypes), threads);
    });
    m.def("vary_cpu", [](const ProblemTuple& p, const VariationTuple& v, std::uintptr_t genotypes, std::uintptr_t values,
                         std::uintptr_t fitness, std::uintptr_t children, int threads) {
        const py::gil_scoped_release release;
        vary_cpu(make_problem(p), make_variation(v), {address<const Option>(genotypes), address<const double>(values), address<const Fitness>(fitness)},
                 address<Option>(children), threads);
    });
    m.def("select_cpu", [](const ProblemTuple& p, std::uintptr_t genotypes, std::uintptr_t values, std::int64_t count, std::int64_t keep,
                           std::uintptr_t indices, std::uintptr_t fitness) {
        const py::gil_scoped_release release;
        check("inner_search", select_cpu(make_problem(p), address<const Option>(genotypes), address<const double>(values), count, keep,
                                         address<std::int64_t>(indices), address<Fitness>(fitness)));
    });
    m.def("evolve_cpu", [](const ProblemTuple& p, const VariationTuple& v, std::int64_t generations, std::uintptr_t genotypes,
                           std::uintptr_t values, std::uintptr_t fitness, int threads) {
        const py::gil_scoped_release release;
        check("inner_search", evolve_cpu(make_problem(p), make_variation(v), generations, address<Option>(genotypes), address<double>(values),
                                         address<Fitness>(fitness), threads));
    });
    m.def("enumerate_cpu", [](const ProblemTuple& p, int threads) {
        Front front;
        {
            const py::gil_scoped_release release;
            check("inner_search", enumerate_cpu(make_problem(p), front, threads));
        }
        return front_bytes(front);
    });
    // None where the front has more than `most` points.
    m.def("exact_front_cpu", [](const ProblemTuple& p, std::int64_t most) -> py::object {
        Front front;
        bool fits = false;
        {
            const py::gil_scoped_release release;
            check("inner_search", exact_front_cpu(make_problem(p), most, front, fits));
        }
        return fits ? py::object(front_bytes(front)) : py::object(py::none());
    });
#ifdef HWNAS_WITH_CUDA
    m.def("score_cuda", [](const ProblemTuple& p, std::int64_t rows, std::uintptr_t genotypes, std::int64_t count, std::uintptr_t values, std::uintptr_t stream) {
        check("inner_search", score_cuda(make_problem(p), rows, address<const Option>(genotypes), count, address<double>(values), address(stream)));
    });
#endif
}

}  // namespace hwnas::inner_search
