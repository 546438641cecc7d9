// A team of threads for the length of one kernel call: PyTorch's OpenMP threads if they are there (see openmp.h), else its
// own, which do not outlive the call. run() hands out units one by one; a kernel that writes each unit's result to the unit's
// own place gives the same bits whatever the number of threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "common/openmp.h"

namespace hwnas {

class Team {
public:
    explicit Team(int threads) : openmp_(process_openmp()), size_(threads > 1 ? threads : 1) {
        if (openmp_) return;
        for (int i = 1; i < threads; ++i) {
            try {
                workers_.emplace_back([this, i] { work(i); });
            } catch (const std::system_error&) {
                break;  // no more threads to be had: go on with those that are there
            }
        }
        size_ = static_cast<int>(workers_.size()) + 1;
    }

    ~Team() {
        if (workers_.empty()) return;
        post(nullptr, nullptr, 0);
        for (std::thread& worker : workers_) worker.join();
    }

    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }

    // Calls f(unit, thread), thread < size(), for every unit in [0, count); returns when all are done. f must not throw.
    template <typename F>
    void run(std::int64_t count, const F& f) {
        const auto call = [](const void* context, std::int64_t unit, int thread) { (*static_cast<const F*>(context))(unit, thread); };
        if (size_ == 1 || count <= 1) {
            for (std::int64_t unit = 0; unit < count; ++unit) f(unit, 0);
            return;
        }
        if (openmp_) {
            set(call, &f, count);
            openmp_([](void* self) { static_cast<Team*>(self)->join(); }, this, static_cast<unsigned>(size_), 0);
            return;
        }
        pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        post(call, &f, count);
        take(0);
        wait([this] { return pending_.load(std::memory_order_acquire) == 0; });
    }

private:
    using Call = void (*)(const void* context, std::int64_t unit, int thread);

    void post(Call call, const void* context, std::int64_t count) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            set(call, context, count);
            epoch_.fetch_add(1, std::memory_order_release);
        }
        changed_.notify_all();
    }

    void set(Call call, const void* context, std::int64_t count) {
        call_ = call;
        context_ = context;
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        joined_.store(0, std::memory_order_relaxed);
    }

    void join() {
        const int thread = joined_.fetch_add(1);
        if (thread < size_) take(thread);
    }

    void take(int thread) {
        for (std::int64_t unit = next_.fetch_add(1); unit < count_; unit = next_.fetch_add(1)) call_(context_, unit, thread);
    }

    void work(int thread) {
        for (std::int64_t seen = 0;;) {
            wait([&] { return epoch_.load(std::memory_order_acquire) != seen; });
            ++seen;  // run() waits for every worker, so none can miss an epoch
            if (!call_) return;
            take(thread);
            if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
                const std::lock_guard<std::mutex> lock(mutex_);  // else the notification could fall before the wait
                changed_.notify_all();
            }
        }
    }

    // Phases follow each other within microseconds, so it pays to look for a while before going to sleep.
    template <typename Done>
    void wait(const Done& done) {
        for (int i = 0; i < kSpins; ++i) {
            if (done()) return;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, done);
    }

    static constexpr int kSpins = 2000;
    OpenMpParallel openmp_;
    int size_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::atomic<std::int64_t> epoch_{0}, next_{0};
    std::atomic<int> pending_{0}, joined_{0};
    Call call_ = nullptr;
    const void* context_ = nullptr;
    std::int64_t count_ = 0;
};

}  // namespace hwnas
