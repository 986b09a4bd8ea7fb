"""CUDA C++ that the runtime's tests compile."""

SCALE = """
extern "C" __global__ void scale(const float* x, float* y, int n, float factor) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
"""

#: 64 values stay live through a loop: at 32 registers they cannot all be in registers.
HUNGRY = """
extern "C" __global__ void hungry(const float* a, float* o, int n) {
    float x[64];
    for (int i = 0; i < 64; i++) x[i] = a[i * n + threadIdx.x];
    for (int j = 0; j < n; j++)
        for (int i = 0; i < 64; i++) x[i] = x[i] * x[(i + 1) % 64] + a[j];
    for (int i = 0; i < 64; i++) o[i * n + threadIdx.x] = x[i];
}
"""

#: A local array with a run-time index: it needs a stack frame, and nothing spills.
LOCAL_ARRAY = """
extern "C" __global__ void local_array(float* o, int n) {
    float y[400];
    for (int i = 0; i < 400; i++) y[i] = o[i % n];
    o[n] = y[n % 400];
}
"""

SHARED = """
extern "C" __global__ void __launch_bounds__(128) shared_reverse(float* o) {
    __shared__ float s[128];
    s[threadIdx.x] = o[threadIdx.x];
    __syncthreads();
    o[threadIdx.x] = s[127 - threadIdx.x];
}
"""

DYNAMIC = """
extern "C" __global__ void dynamic_reverse(float* o, int n, long long offset) {
    extern __shared__ float s[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = o[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) o[i] = s[n - 1 - i] + (float)offset;
}
"""

MMA = """
#include <mma.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
using namespace nvcuda;
extern "C" __global__ void mma16(const __half* a, const __half* b, float* c) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> fc;
    wmma::fill_fragment(fc, 0.0f);
    wmma::load_matrix_sync(fa, a, 16);
    wmma::load_matrix_sync(fb, b, 16);
    wmma::mma_sync(fc, fa, fb, fc);
    wmma::store_matrix_sync(c, fc, 16, wmma::mem_row_major);
}
"""
