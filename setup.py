"""Builds the native module with CMake; sources, flags and CUDA architectures live in CMakeLists.txt."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        root = Path(__file__).parent.resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = root / "build" / f"cmake-{sys.implementation.cache_tag}"
        # The cache remembers interpreters and pybind11 of earlier, since deleted, build environments: configure afresh,
        # but keep the object files, so that a rebuild compiles only what changed.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        shutil.rmtree(build / "CMakeFiles" / "CMakeTmp", ignore_errors=True)
        configure = [
            "cmake",
            "-S",
            str(root),
            "-B",
            str(build),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DHWNAS_OUTPUT_NAME={target.name}",
            f"-DHWNAS_CUDA={os.environ.get('HWNAS_CUDA', 'AUTO')}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)


# The device descriptions are data at the top of the repository and travel inside the package.
setup(
    ext_modules=[Extension("hwnas._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    packages=[*find_packages(include=["hwnas*"]), "hwnas.latency_models"],
    package_dir={"hwnas.latency_models": "latency_models"},
    package_data={"hwnas": ["_native.pyi"], "hwnas.latency_models": ["*/device.toml"]},
)
