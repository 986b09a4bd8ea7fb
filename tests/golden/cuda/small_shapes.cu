// small_shapes: generated for sm_89
// block:    4 warps, 128 threads
// grid:     i over 1
// shared:   3328 bytes

using uint32_t = unsigned int;

// PTX ISA, st
__device__ __forceinline__ void st_shared_f32x1(uint32_t dst, const float* v) {
    asm volatile("st.shared.f32 [%0], %1;" :: "r"(dst), "f"(v[0]) : "memory");
}

// PTX ISA, ld
__device__ __forceinline__ void ld_shared_f32x1(float* d, uint32_t src) {
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(d[0]) : "r"(src) : "memory");
}

// PTX ISA, shfl.sync.bfly: x of the lane whose number differs in `lanes`
__device__ __forceinline__ float shfl_xor_f32(float x, int lanes) {
    return __shfl_xor_sync(0xffffffffu, x, lanes);
}

// Bytes from the start of shared memory.
constexpr uint32_t line_offset = 0;  // f32[128]{panel 128}
constexpr uint32_t tile_offset = 1024;  // f32[64,8]{panel 8 pad 1}

extern "C" __global__ void __launch_bounds__(128, 1)
small_shapes_sm_89(const float* __restrict__ X, float* __restrict__ Y, float* __restrict__ Z) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    const uint32_t line_smem = smem_base + line_offset;
    const uint32_t tile_smem = smem_base + tile_offset;
    // spec.py:2
    float v[4];
    const float* x_ptr = X + lane;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        v[i] = x_ptr[i * 32];
    // spec.py:3
    const uint32_t line_lane = lane * 4;
    const uint32_t line_at = line_smem + line_lane;
    if (warp == 0) {
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_f32x1(line_at + i * 128, &v[i]);
    }
    __syncthreads();
    // spec.py:4
    float w[1];
    const uint32_t line_lane_2 = warp * 128 + lane * 4;
    const uint32_t line_at_2 = line_smem + line_lane_2;
    ld_shared_f32x1(w, line_at_2);
    // spec.py:5
    const uint32_t tile_lane = lane * 36 + 12;
    const uint32_t tile_at = tile_smem + tile_lane;
    float top[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        top[i] = v[i + 2];
    if (warp == 0) {
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            st_shared_f32x1(tile_at + i * 1152, &top[i]);
    }
    __syncthreads();
    // spec.py:6
    float down[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        ld_shared_f32x1(&down[i], tile_at + i * 1152);
    // spec.py:7
    const int y_col = warp * 32 + lane;
    float* y_ptr = Y + y_col;
    y_ptr[0] = w[0];
    float* y_ptr_2 = Y + 128 + lane;
    if (warp == 0) {
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            y_ptr_2[i * 32] = down[i];
    }
    // spec.py:8
    float s[1];
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        s[0] = i < 1 ? v[i] : s[0] + v[i];
    }
    s[0] = s[0] + shfl_xor_f32(s[0], 1);
    s[0] = s[0] + shfl_xor_f32(s[0], 2);
    s[0] = s[0] + shfl_xor_f32(s[0], 4);
    s[0] = s[0] + shfl_xor_f32(s[0], 8);
    s[0] = s[0] + shfl_xor_f32(s[0], 16);
    float* z_ptr = Z + 3;
    if (lane == 0 && warp == 0) {
        z_ptr[0] = s[0];
    }
}
