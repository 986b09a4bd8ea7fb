// branches: generated for sm_89
// block:    4 warps, 128 threads
// grid:     i over N in tiles of 256, last first

using uint32_t = unsigned int;

// a / b rounded down
__device__ __forceinline__ int floor_div(int a, int b) {
    const int q = a / b;
    return q - (q * b != a && (a < 0) != (b < 0));
}

// PTX ISA, rcp: 1/x within 1 ulp
__device__ __forceinline__ float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// PTX ISA, ex2: 2^x, relative error below 2^-22.5
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / (1 + e^-x), relative error about 3e-7
__device__ __forceinline__ float sigmoid_approx(float x) {
    return rcp_approx(1.0f + exp2_approx(-1.4426950408889634f * x));
}

extern "C" __global__ void __launch_bounds__(128, 1)
branches_sm_89(const float* __restrict__ X, float* __restrict__ Y, const int* __restrict__ table, int N) {
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int i_tiles = (N + 255) / 256;
    const int i_ = i_tiles - 1 - int(blockIdx.x);
    // spec.py:2
    const int at = i_ * 256;
    float u[2];
    const int x_col = warp * 32 + lane;
    const float* x_ptr = X + at + x_col;
    const int x_pos = at + x_col;
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        u[i] = x_pos + i * 128 < N ? x_ptr[i * 128] : 0.0f;
    // spec.py:3
    int g[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        g[i] = unsigned(x_col + i * 128 + at) < unsigned(N) ? table[x_col + i * 128 + at] : 0;
    float v[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        v[i] = float(g[i]);
    // spec.py:4
    int k = 7;
    #pragma unroll 1
    for (int n = N - 1; n >= 0; --n) {
        // spec.py:5
        const int k_2 = floor_div(k - 3, 2);
        float u_old[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            u_old[i] = u[i];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            u[i] = v[i];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            v[i] = u_old[i];
        k = k_2;
    }
    // spec.py:6
    bool low = false;
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        low |= u[i] < v[i];
    low = __any_sync(0xffffffffu, low);
    if (low) {
        // spec.py:7
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            u[i] = u[i] * float(k);
    }
    // spec.py:8
    float y[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float sig = sigmoid_approx(u[i]);
        y[i] = sig * (sig + 1.0f);
    }
    // spec.py:9
    float* y_ptr = Y + at + x_col;
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        if (x_pos + i * 128 < N) y_ptr[i * 128] = y[i];
}
