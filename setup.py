"""Build of the Cython kernels: each one once per CPU level, with OpenMP where the compiler has it.

Everything else about the package is in pyproject.toml. The environment variable
NORMLIB_REQUIRE_OPENMP=1 turns a compiler without OpenMP into an error.
"""

import copy
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = "normlib/_kernels"

# Levels of the x86-64 psABI; elsewhere one build serves every CPU.
CPU_LEVELS = (
    {"baseline": [], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4"]}
    if platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "win32"
    else {"baseline": []}
)

# No flag here may change a result: sums keep their order, and nothing is fused but by vfma.
COMPILE_ARGS = [
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]
# The loops over the vectors of a block must unroll whole, or its accumulators live in memory.
GCC_ARGS = ["--param=max-completely-peel-times=64", "--param=max-completely-peeled-insns=2000"]

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "freethreading_compatible": True,
}

OPENMP_PROBE = """
#include <omp.h>
int main(void)
{
    int total = 0;
#pragma omp parallel for reduction(+ : total) num_threads(2)
    for (int i = 0; i < 100; i++) total += i;
    return !(total == 4950 && omp_get_max_threads() > 0);
}
"""


class BuildKernels(build_ext):
    """Compiles each kernel for each CPU level, from one C source, in a build folder of its own."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        super().run()
        if not self.inplace:
            # In a clone, ``python -m normlib`` finds the package in the source tree first.
            self.copy_extensions_to_source()

    def build_extensions(self) -> None:
        self.translate()
        openmp = self.find_openmp()
        optimize = []
        if self.compiler.compiler_type != "msvc":
            optimize = COMPILE_ARGS + (GCC_ARGS if self.accepts(GCC_ARGS) else [])
        for extension in self.extensions:
            extension.extra_compile_args = [*extension.extra_compile_args, *optimize, *openmp]
            extension.extra_link_args = [*extension.extra_link_args, *openmp]
        super().build_extensions()

    def translate(self) -> None:
        """Make one C source of each .pyx, which its extensions share."""
        pyx = sorted({extension.sources[0] for extension in self.extensions})
        modules = [Extension(path.removesuffix(".pyx").replace("/", "."), [path]) for path in pyx]
        translated = cythonize(
            modules, compiler_directives=DIRECTIVES, build_dir="build/cython", force=self.force
        )
        c_source = {path: module.sources[0] for path, module in zip(pyx, translated, strict=True)}
        for extension in self.extensions:
            extension.sources = [c_source[extension.sources[0]]]

    def build_extension(self, extension: Extension) -> None:
        # A copy, since extensions may be built in parallel.
        builder = copy.copy(self)
        builder.build_temp = str(Path(self.build_temp) / extension.name)
        super(BuildKernels, builder).build_extension(extension)

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:  # folders of CPU levels hold nothing but extensions
            Path(*extension.name.split(".")[:-1]).mkdir(exist_ok=True)
        super().copy_extensions_to_source()

    def find_openmp(self) -> list[str]:
        """Flags with which an OpenMP program compiles, links and runs; none without OpenMP."""
        flags = ["/openmp"] if self.compiler.compiler_type == "msvc" else ["-fopenmp"]
        if self.links(OPENMP_PROBE, flags, run=True):
            return flags
        if os.environ.get("NORMLIB_REQUIRE_OPENMP") == "1":
            raise RuntimeError(
                f"NORMLIB_REQUIRE_OPENMP=1, but the compiler builds no program with {flags[0]}; "
                "install OpenMP for it (libgomp, libomp) or unset the variable"
            )
        self.warn("no OpenMP: kernels will run on one thread")
        return []

    def accepts(self, flags: list[str]) -> bool:
        return self.links("int main(void) { return 0; }", [*flags, "-Werror"], run=False)

    def links(self, source: str, flags: list[str], *, run: bool) -> bool:
        """Whether the real compiler makes a program of source, and it exits with 0."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.c"
            path.write_text(source)
            try:
                objects = self.compiler.compile(
                    [str(path)], output_dir=folder, extra_postargs=flags
                )
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=flags
                )
                program = next(p for p in Path(folder).glob("probe*") if p.suffix in ("", ".exe"))
                return not run or subprocess.run([program], timeout=60).returncode == 0
            except Exception as error:
                self.announce(f"probe with {flags} failed: {error}", level=2)
                return False


# Not kernels: what tells the levels apart, and what is as fast at any of them.
ONE_BUILD = ["buffers", "changes", "cpu"]


def kernels() -> list[Extension]:
    """Every other .pyx file, once per CPU level."""
    names = sorted(path.stem for path in Path(FOLDER).glob("*.pyx"))
    return [extension(name, name, []) for name in ONE_BUILD] + [
        extension(f"{level}.{name}", name, flags)
        for level, flags in CPU_LEVELS.items()
        for name in names
        if name not in ONE_BUILD
    ]


def extension(module: str, source: str, flags: list[str]) -> Extension:
    return Extension(
        f"normlib._kernels.{module}",
        [f"{FOLDER}/{source}.pyx"],
        include_dirs=[np.get_include(), FOLDER],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        depends=[p.as_posix() for p in Path(FOLDER).iterdir() if p.suffix in (".h", ".pxd")],
        extra_compile_args=flags,
    )


setup(ext_modules=kernels(), cmdclass={"build_ext": BuildKernels})
