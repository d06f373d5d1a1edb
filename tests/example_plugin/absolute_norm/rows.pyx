# cython: language_level=3, boundscheck=False, cdivision=True
"""What `AbsoluteNorm` does to one row; ``cdef api`` makes a function known to other modules."""
from cython cimport floating
from libc.math cimport fabs
from libc.stdint cimport intptr_t


cdef void forward(const floating *x, floating *y, intptr_t features, const floating **parameters,
                  double eps, double *cache) noexcept nogil:
    cdef const floating *gain = parameters[0]
    cdef const floating *bias = parameters[1]
    cdef double total = 0
    cdef double scale
    cdef intptr_t i
    for i in range(features):
        total += fabs(x[i])
    scale = 1 / (total / features + eps)
    cache[0] = scale
    for i in range(features):
        y[i] = <floating>(x[i] * scale)
        if gain != NULL:
            y[i] *= gain[i]
        if bias != NULL:
            y[i] += bias[i]


cdef void backward(const floating *dy, const floating *x, floating *dx, intptr_t features,
                   const floating **parameters, double eps, const double *cache,
                   double **gradients) noexcept nogil:
    cdef const floating *gain = parameters[0]
    cdef double *dgain = gradients[0]
    cdef double *dbias = gradients[1]
    cdef double scale = cache[0]
    cdef double along = 0
    cdef intptr_t i
    for i in range(features):
        dx[i] = dy[i] if gain == NULL else dy[i] * gain[i]
        along += dx[i] * x[i]
        if dgain != NULL:
            dgain[i] += dy[i] * (x[i] * scale)
        if dbias != NULL:
            dbias[i] += dy[i]
    along *= scale / features
    for i in range(features):
        dx[i] = <floating>(scale * (dx[i] - ((x[i] > 0) - (x[i] < 0)) * along))


cdef api void forward_float(const float *x, float *y, intptr_t features, const float **parameters,
                            double eps, double *cache) noexcept nogil:
    forward(x, y, features, parameters, eps, cache)


cdef api void forward_double(const double *x, double *y, intptr_t features,
                             const double **parameters, double eps, double *cache) noexcept nogil:
    forward(x, y, features, parameters, eps, cache)


cdef api void backward_float(const float *dy, const float *x, float *dx, intptr_t features,
                             const float **parameters, double eps, const double *cache,
                             double **gradients) noexcept nogil:
    backward(dy, x, dx, features, parameters, eps, cache, gradients)


cdef api void backward_double(const double *dy, const double *x, double *dx, intptr_t features,
                              const double **parameters, double eps, const double *cache,
                              double **gradients) noexcept nogil:
    backward(dy, x, dx, features, parameters, eps, cache, gradients)
