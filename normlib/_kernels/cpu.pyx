"""What the CPU can run, and what the OpenMP runtime offers. Compiled for every CPU alike."""

cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GNUC__)
    static int cpu_has_v3(void)
    {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
            && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    }
    static int cpu_has_v4(void)
    {
        return cpu_has_v3() && __builtin_cpu_supports("avx512f")
            && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    #else
    static int cpu_has_v3(void) { return 0; }
    static int cpu_has_v4(void) { return 0; }
    #endif

    #ifdef _OPENMP
    #include <omp.h>
    static int openmp_version(void) { return _OPENMP; }
    #else
    static int openmp_version(void) { return 0; }
    static int omp_get_max_threads(void) { return 1; }
    static void omp_set_num_threads(int n) { (void)n; }
    #endif
    """
    bint cpu_has_v3() noexcept
    bint cpu_has_v4() noexcept
    int openmp_version() noexcept
    int omp_get_max_threads() noexcept
    void omp_set_num_threads(int) noexcept


def supported_levels():
    """CPU levels that this machine can run, the best last."""
    return ["baseline"] + ["v3"] * cpu_has_v3() + ["v4"] * cpu_has_v4()


def openmp():
    """OpenMP's version as the compiler states it (yyyymm), 0 for a build without it."""
    return openmp_version()


def openmp_max_threads():
    """Threads that OpenMP would use for this Python thread."""
    return omp_get_max_threads()


def set_openmp_max_threads(int n):
    """Set that number, for this Python thread."""
    omp_set_num_threads(n)
