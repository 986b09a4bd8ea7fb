// wmma_gemm: generated for sm_89
// block:    4 warps, 128 threads
// grid:     i over M in tiles of 64
// grid:     j over N in tiles of 64
// shared:   35840 bytes

#include <mma.h>
using namespace nvcuda;

using uint32_t = unsigned int;
using f16 = unsigned short;  // its bits

// 4 registers in one global load
__device__ __forceinline__ void ld_global_b32x4(uint32_t* d, const void* src) {
    const uint4 v = *static_cast<const uint4*>(src);
    d[0] = v.x; d[1] = v.y; d[2] = v.z; d[3] = v.w;
}

// PTX ISA, st
__device__ __forceinline__ void st_shared_b32x4(uint32_t dst, const uint32_t* v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" :: "r"(dst), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}

// PTX ISA, ld
__device__ __forceinline__ void ld_shared_f32x4(float* d, uint32_t src) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(src) : "memory");
}

// 4 registers in one global store
__device__ __forceinline__ void st_global_f32x4(void* dst, const float* v) {
    *static_cast<float4*>(dst) = make_float4(v[0], v[1], v[2], v[3]);
}

// Bytes from the start of shared memory.
constexpr uint32_t a_offset = 0;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t b_offset = 9216;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t c_offset = 18432;  // f32[64,64]{panel 64 pad 4}

extern "C" __global__ void __launch_bounds__(128, 1)
wmma_gemm_sm_89(const f16* __restrict__ A, long long A_s0, const f16* __restrict__ B, long long B_s0,
        float* __restrict__ C_, long long C_s0, float alpha, int M, int K) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    const uint32_t a_smem = smem_base + a_offset;
    const uint32_t b_smem = smem_base + b_offset;
    const uint32_t c_smem = smem_base + c_offset;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int i_tiles = (M + 63) / 64;
    const int i_ = int(blockIdx.x) % i_tiles;
    const int j = int(blockIdx.x) / i_tiles;
    // spec.py:2
    const int row = i_ * 64;
    const int col = j * 64;
    const int tiles = K / 64;
    // spec.py:3
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        wmma::fill_fragment(acc[i], 0.0f);
    const int a_row = warp * 16 + lane / 8;
    const int a_col = lane % 8 * 8;
    const f16* a_base = A + (long long)(row + a_row) * A_s0 + a_col;
    const uint32_t a_lane = warp * 2304 + lane / 8 * 144 + lane % 8 * 16;
    const uint32_t a_at = a_smem + a_lane;
    const f16* b_base = B + (long long)(col + a_row) * B_s0 + a_col;
    const uint32_t b_at = b_smem + a_lane;
    #pragma unroll 1
    for (int t = 0; t < tiles; ++t) {
        // spec.py:4
        const int k0 = t * 64;
        __syncthreads();
        uint32_t a_in[16];
        const f16* a_ptr = a_base + k0;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            ld_global_b32x4(&a_in[i * 4], a_ptr + (long long)(i * 4) * A_s0);
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_b32x4(a_at + i * 576, &a_in[i * 4]);
        uint32_t b_in[16];
        const f16* b_ptr = b_base + k0;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            ld_global_b32x4(&b_in[i * 4], b_ptr + (long long)(i * 4) * B_s0);
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_b32x4(b_at + i * 576, &b_in[i * 4]);
        __syncthreads();
        // spec.py:5
        #pragma unroll
        for (int ks = 0; ks < 4; ++ks) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> fa[1];
            wmma::load_matrix_sync(fa[0], reinterpret_cast<const half*>(smem + a_offset + ks * 32 + warp * 2304), 72);
            wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> fb[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(fb[i], reinterpret_cast<const half*>(smem + b_offset + ks * 32 + i * 2304), 72);
            #pragma unroll
            for (int ni = 0; ni < 4; ++ni)
                wmma::mma_sync(acc[ni], fa[0], fb[ni], acc[ni]);
        }
    }
    // spec.py:6
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc_2[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        #pragma unroll
        for (int e = 0; e < acc_2[i].num_elements; ++e)
            acc_2[i].x[e] = acc[i].x[e] * alpha;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        wmma::store_matrix_sync(reinterpret_cast<float*>(smem + c_offset + warp * 4352 + i * 64), acc_2[i], 68, wmma::mem_row_major);
    __syncwarp();
    float out[32];
    const uint32_t c_lane = warp * 4352 + lane / 16 * 272 + lane % 16 * 16;
    const uint32_t c_at = c_smem + c_lane;
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        ld_shared_f32x4(&out[i * 4], c_at + i * 544);
    // spec.py:7
    const int c_row = warp * 16 + lane / 16;
    const int c_col = lane % 16 * 4;
    float* c_ptr = C_ + (long long)(row + c_row) * C_s0 + col + c_col;
    const int c_pos = row + c_row;
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        if (c_pos + i * 2 < M) st_global_f32x4(c_ptr + (long long)(i * 2) * C_s0, &out[i * 4]);
}
