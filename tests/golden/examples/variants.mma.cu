// variant_attention: generated for sm_89
// schedule: tiles={BLOCK_M: 64, BLOCK_N: 64}, warps=4, math=mma, stages=2
// block:    4 warps, 128 threads
// grid:     b over B
// grid:     h over H
// grid:     rows_tile over M in tiles of 64, last first
// shared:   40960 bytes

#define INF __int_as_float(0x7f800000)
using uint32_t = unsigned int;
using f16 = unsigned short;  // its bits

// XOR of the 16-byte chunk number with the row number (PTX ISA, Swizzling modes)
template <int Mask>
__device__ __forceinline__ uint32_t swizzle(uint32_t offset) {
    return offset ^ ((offset >> 3) & Mask);
}

// PTX ISA, cp.async: 16 bytes; past the first `bytes` of the source, zeros
__device__ __forceinline__ void cp_async_16_fill(uint32_t dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
             :: "r"(dst), "l"(src), "r"(bytes) : "memory");
}

// PTX ISA, cp.async.commit_group
__device__ __forceinline__ void commit_group() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// PTX ISA, rcp: 1/x within 1 ulp
__device__ __forceinline__ float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// a / b rounded down
__device__ __forceinline__ int floor_div(int a, int b) {
    const int q = a / b;
    return q - (q * b != a && (a < 0) != (b < 0));
}

// PTX ISA, cp.async.wait_group: at most N of this thread's groups stay in flight
template <int N>
__device__ __forceinline__ void wait_group() {
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

// PTX ISA, ldmatrix: 4 blocks of 8 x 8; lane l gives the address of row l % 8 of block l / 8
__device__ __forceinline__ void ldmatrix_x4(uint32_t* d, uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
             : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(row) : "memory");
}

// PTX ISA, Matrix Fragments for mma.m16n8k16 with floating point type: c += a b
__device__ __forceinline__ void mma_m16n8k16_f16(float* c, const uint32_t* a, const uint32_t* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// PTX ISA, shfl.sync.bfly: x of the lane whose number differs in `lanes`
__device__ __forceinline__ float shfl_xor_f32(float x, int lanes) {
    return __shfl_xor_sync(0xffffffffu, x, lanes);
}

// PTX ISA, ex2: 2^x, relative error below 2^-22.5
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// PTX ISA, cvt: two floats to packed halves, the first in the low half
__device__ __forceinline__ uint32_t pack_f16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

// PTX ISA, ldmatrix: 4 blocks of 8 x 8; lane l gives the address of row l % 8 of block l / 8
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t* d, uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
             : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(row) : "memory");
}

// PTX ISA, st
__device__ __forceinline__ void st_shared_b32x1(uint32_t dst, const uint32_t* v) {
    asm volatile("st.shared.b32 [%0], %1;" :: "r"(dst), "r"(v[0]) : "memory");
}

// PTX ISA, ld
__device__ __forceinline__ void ld_shared_b32x4(uint32_t* d, uint32_t src) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(src) : "memory");
}

// 4 registers in one global store
__device__ __forceinline__ void st_global_b32x4(void* dst, const uint32_t* v) {
    *static_cast<uint4*>(dst) = make_uint4(v[0], v[1], v[2], v[3]);
}

// Bytes from the start of shared memory.
constexpr uint32_t k_tile_offset = 0;  // f16[64,64]{panel 64 swizzle 128} x2
constexpr uint32_t tile_offset = 0;  // f16[64,64]{panel 64 swizzle 128}
constexpr uint32_t v_offset = 16384;  // f16[64,64]{panel 64 swizzle 128} x2
constexpr uint32_t q_offset = 32768;  // f16[64,64]{panel 64 swizzle 128}

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int row_s(int i) { return i / 2 % 2; }

extern "C" __global__ void __launch_bounds__(128, 1)
variant_attention_sm_89(const f16* __restrict__ Q, long long Q_s0, long long Q_s1, long long Q_s2,
        const f16* __restrict__ K, long long K_s0, long long K_s1, long long K_s2, const f16* __restrict__ V,
        long long V_s0, long long V_s1, long long V_s2, const float* __restrict__ slopes, f16* __restrict__ O,
        long long O_s0, long long O_s1, long long O_s2, float scale, float cap, int window, int H, int M, int N) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    const uint32_t q_smem = smem_base + q_offset;
    const uint32_t tile_smem = smem_base + tile_offset;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int rows_tile_tiles = (M + 63) / 64;
    const int rows_tile = rows_tile_tiles - 1 - int(blockIdx.x) % rows_tile_tiles;
    const int rest = int(blockIdx.x) / rows_tile_tiles;
    const int h = rest % H;
    const int b = rest / H;
    // b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))  [variants.py:12]
    const int rows_start = rows_tile * 64;
    // q, slope = fc.load(Q[b, h, rows]), slopes[h]  [variants.py:14]
    const uint32_t copy_lane = swizzle<0x70>(warp * 2048 + lane * 16);
    const uint32_t q_dst = q_smem + copy_lane;
    const int copy_row = warp * 16 + lane / 8;
    const int copy_col = lane % 8 * 8;
    const long long q_step = 4 * Q_s2;
    const f16* q_src = Q + (long long)b * Q_s0 + (long long)h * Q_s1 + (long long)(rows_start + copy_row) * Q_s2 + copy_col;
    const int q_pos = rows_start + copy_row;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        cp_async_16_fill((q_dst ^ (i % 2 * 64)) + i * 512, q_src, q_pos + i * 4 < M ? 16 : 0);
        q_src += q_step;
    }
    commit_group();
    const float slope = unsigned(h) < unsigned(H) ? slopes[h] : 0.0f;
    // s = cap * fc.tanh(s / cap)  [variants.py:18]
    const float scale_times_rcp_cap = scale * rcp_approx(cap);
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    const int cols_tile_from = max(rows_tile - floor_div(window + 62, 64), 0);
    const int cols_tile_to = min((N + 63) / 64, rows_tile + 1);
    const int end = max(cols_tile_from, rows_tile - floor_div(window, 64) + 1);
    const int whole_from = min(end, cols_tile_to);
    const int whole_to = max(min(cols_tile_to, min(N / 64, rows_tile)), whole_from);
    const int N_tiles_cut_before = cols_tile_to - 1;
    const bool test = N_tiles_cut_before >= cols_tile_from;
    // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
    const uint32_t k_tile_smem = smem_base + k_tile_offset;
    const uint32_t k_tile_dst = k_tile_smem + copy_lane;
    const long long k_step = 4 * K_s2;
    const f16* k_base = K + (long long)b * K_s0 + (long long)h * K_s1 + (long long)copy_row * K_s2 + copy_col;
    const uint32_t v_smem = smem_base + v_offset;
    const uint32_t v_dst = v_smem + copy_lane;
    const long long v_step = 4 * V_s2;
    const f16* v_base = V + (long long)b * V_s0 + (long long)h * V_s1 + (long long)copy_row * V_s2 + copy_col;
    if (test) {
        // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
        const int cols_start = N_tiles_cut_before * 64;
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        const f16* k_src = k_base + (long long)cols_start * K_s2;
        const int k_pos = cols_start + copy_row;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill((k_tile_dst ^ (i % 2 * 64)) + i * 512, k_src, unsigned(k_pos + i * 4) < unsigned(N) ? 16 : 0);
            k_src += k_step;
        }
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        const f16* v_src = v_base + (long long)cols_start * V_s2;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill((v_dst ^ (i % 2 * 64)) + i * 512, v_src, unsigned(k_pos + i * 4) < unsigned(N) ? 16 : 0);
            v_src += v_step;
        }
    }
    commit_group();
    wait_group<1>();
    __syncthreads();
    // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
    uint32_t q[16];
    const uint32_t q_lane = swizzle<0x70>(warp * 2048 + lane / 16 * 16 + lane % 16 * 128);
    const uint32_t q_at = q_smem + q_lane;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        ldmatrix_x4(&q[i * 4], q_at ^ (i * 32));
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    float m[2];
    float l[2];
    float acc[32];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        m[i] = -INF;
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        l[i] = 0.0f;
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        acc[i] = 0.0f;
    const uint32_t k_tile_lane = swizzle<0x70>(lane / 16 * 1024 + lane / 8 % 2 * 16 + lane % 8 * 128);
    const int pos0 = warp * 16 + lane / 4;
    const int col0 = lane % 4 * 2;
    const uint32_t v_lane = swizzle<0x70>(lane / 16 * 16 + lane % 16 * 128);
    // masked part of the range
    #pragma unroll 1
    for (int cols_tile = cols_tile_to - 1; cols_tile >= whole_to; --cols_tile) {
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        const int n = N_tiles_cut_before - cols_tile;
        const uint32_t k_tile = k_tile_smem + (n & 1) * 8192;
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        const uint32_t v = v_smem + (n & 1) * 8192;
        wait_group<0>();
        __syncthreads();
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        const int next = cols_tile - 1;
        const bool test_2 = next >= cols_tile_from;
        const uint32_t k_tile_2 = k_tile_smem + ((n + 1) & 1) * 8192;
        const uint32_t k_tile_dst_2 = k_tile_2 + copy_lane;
        const uint32_t v_2 = v_smem + ((n + 1) & 1) * 8192;
        const uint32_t v_dst_2 = v_2 + copy_lane;
        if (test_2) {
            // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
            const int cols_start_2 = next * 64;
            // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
            const f16* k_src_2 = k_base + (long long)cols_start_2 * K_s2;
            const int k_pos_2 = cols_start_2 + copy_row;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill((k_tile_dst_2 ^ (i % 2 * 64)) + i * 512, k_src_2, unsigned(k_pos_2 + i * 4) < unsigned(N) ? 16 : 0);
                k_src_2 += k_step;
            }
            // soft.add(s, V[b, h, cols])  [variants.py:20]
            const f16* v_src_2 = v_base + (long long)cols_start_2 * V_s2;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill((v_dst_2 ^ (i % 2 * 64)) + i * 512, v_src_2, unsigned(k_pos_2 + i * 4) < unsigned(N) ? 16 : 0);
                v_src_2 += v_step;
            }
        }
        commit_group();
        // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
        const int cols_start_3 = cols_tile * 64;
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        float q_dot_k_tile[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            q_dot_k_tile[i] = 0.0f;
        const uint32_t k_tile_at = k_tile + k_tile_lane;
        #pragma unroll
        for (int k = 0; k < 4; ++k) {
            uint32_t k_tile_3[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4(&k_tile_3[i * 4], (k_tile_at ^ (k * 32)) + i * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&q_dot_k_tile[ni * 4], &q[k * 4], &k_tile_3[ni * 2]);
        }
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        int limit[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int x = pos0 + i * 8 + rows_start;
            limit[i] = min(x + 1 - cols_start_3, N - cols_start_3);
        }
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        float s[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i) {
            const bool x_2 = i / 4 * 8 + i % 2 < limit[row_s(i)] - col0 && i / 4 * 8 + i % 2 > pos0 + i / 2 % 2 * 8 - window + rows_start - cols_start_3 - col0;
            const float x_3 = fmaf(float(i / 4 * 8 + i / 2 % 2 * -8 + i % 2), slope, float(col0 + cols_start_3 - (pos0 + rows_start)) * slope);
            const float x_4 = tanhf(q_dot_k_tile[i] * scale_times_rcp_cap) * cap + x_3;
            s[i] = x_2 ? x_4 : -INF;
        }
        float max_s[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 2 + i / 2 * 4 + i % 2;
                part[i % 2] = i < 2 ? s[e] : fmaxf(part[i % 2], s[e]);
            }
            max_s[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 1));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 2));
        }
        float top[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            top[i] = fmaxf(m[i], max_s[i]);
        float base[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base[i] = top[i] == -INF ? 0.0f : top[i];
        float base_log2e[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_log2e[i] = base[i] * 1.442695f;
        bool any_far = false;
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            any_far |= fabsf(base_log2e[i]) > 8192.0f;
        any_far = __any_sync(0xffffffffu, any_far);
        if (any_far) {
            bool far[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                far[i] = fabsf(base_log2e[i]) > 8192.0f;
            float base_2[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_2[i] = far[i] ? base[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_log2e[i] = far[i] ? 0.0f : base_log2e[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s[i] = s[i] - base_2[row_s(i)];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                m[i] = m[i] - base_2[i];
        }
        float p[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            p[i] = exp2_approx(s[i] * 1.442695f - base_log2e[row_s(i)]);
        float fade[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            fade[i] = exp2_approx(m[i] * 1.442695f - base_log2e[i]);
        float sum_p[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 2 + i / 2 * 4 + i % 2;
                part[i % 2] = i < 2 ? p[e] : part[i % 2] + p[e];
            }
            sum_p[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            l[i] = l[i] * fade[i] + sum_p[i];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            acc[i] = acc[i] * fade[row_s(i)];
        uint32_t p_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            p_2[i] = pack_f16(p[2 * i], p[2 * i + 1]);
        const uint32_t v_at = v + v_lane;
        #pragma unroll
        for (int k_2 = 0; k_2 < 4; ++k_2) {
            uint32_t v_3[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4_trans(&v_3[i * 4], (v_at ^ (i * 32)) + k_2 * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&acc[ni * 4], &p_2[k_2 * 4], &v_3[ni * 2]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            m[i] = top[i];
    }
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    // full part of the range
    #pragma unroll 1
    for (int cols_tile_2 = whole_to - 1; cols_tile_2 >= whole_from; --cols_tile_2) {
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        const int n_2 = N_tiles_cut_before - cols_tile_2;
        const uint32_t k_tile_4 = k_tile_smem + (n_2 & 1) * 8192;
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        const uint32_t v_4 = v_smem + (n_2 & 1) * 8192;
        wait_group<0>();
        __syncthreads();
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        const int next_2 = cols_tile_2 - 1;
        const bool test_3 = next_2 >= cols_tile_from;
        const uint32_t k_tile_5 = k_tile_smem + ((n_2 + 1) & 1) * 8192;
        const uint32_t k_tile_dst_3 = k_tile_5 + copy_lane;
        const uint32_t v_5 = v_smem + ((n_2 + 1) & 1) * 8192;
        const uint32_t v_dst_3 = v_5 + copy_lane;
        if (test_3) {
            // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
            const int cols_start_4 = next_2 * 64;
            // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
            const f16* k_src_3 = k_base + (long long)cols_start_4 * K_s2;
            const int k_pos_3 = cols_start_4 + copy_row;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill((k_tile_dst_3 ^ (i % 2 * 64)) + i * 512, k_src_3, unsigned(k_pos_3 + i * 4) < unsigned(N) ? 16 : 0);
                k_src_3 += k_step;
            }
            // soft.add(s, V[b, h, cols])  [variants.py:20]
            const f16* v_src_3 = v_base + (long long)cols_start_4 * V_s2;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill((v_dst_3 ^ (i % 2 * 64)) + i * 512, v_src_3, unsigned(k_pos_3 + i * 4) < unsigned(N) ? 16 : 0);
                v_src_3 += v_step;
            }
        }
        commit_group();
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        float q_dot_k_tile_2[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            q_dot_k_tile_2[i] = 0.0f;
        const uint32_t k_tile_at_2 = k_tile_4 + k_tile_lane;
        #pragma unroll
        for (int k_3 = 0; k_3 < 4; ++k_3) {
            uint32_t k_tile_6[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4(&k_tile_6[i * 4], (k_tile_at_2 ^ (k_3 * 32)) + i * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&q_dot_k_tile_2[ni * 4], &q[k_3 * 4], &k_tile_6[ni * 2]);
        }
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        float s_2[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i) {
            const float x_5 = fmaf(float(i / 4 * 8 + i / 2 % 2 * -8 + i % 2), slope, float(col0 + cols_tile_2 * 64 - (pos0 + rows_start)) * slope);
            s_2[i] = tanhf(q_dot_k_tile_2[i] * scale_times_rcp_cap) * cap + x_5;
        }
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        float max_s_2[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 2 + i / 2 * 4 + i % 2;
                part[i % 2] = i < 2 ? s_2[e] : fmaxf(part[i % 2], s_2[e]);
            }
            max_s_2[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            max_s_2[i] = fmaxf(max_s_2[i], shfl_xor_f32(max_s_2[i], 1));
            max_s_2[i] = fmaxf(max_s_2[i], shfl_xor_f32(max_s_2[i], 2));
        }
        float top_2[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            top_2[i] = fmaxf(m[i], max_s_2[i]);
        float base_3[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_3[i] = top_2[i] == -INF ? 0.0f : top_2[i];
        float base_log2e_2[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_log2e_2[i] = base_3[i] * 1.442695f;
        bool any_far_2 = false;
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            any_far_2 |= fabsf(base_log2e_2[i]) > 8192.0f;
        any_far_2 = __any_sync(0xffffffffu, any_far_2);
        if (any_far_2) {
            bool far_2[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                far_2[i] = fabsf(base_log2e_2[i]) > 8192.0f;
            float base_4[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_4[i] = far_2[i] ? base_3[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_log2e_2[i] = far_2[i] ? 0.0f : base_log2e_2[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s_2[i] = s_2[i] - base_4[row_s(i)];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                m[i] = m[i] - base_4[i];
        }
        float p_3[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            p_3[i] = exp2_approx(s_2[i] * 1.442695f - base_log2e_2[row_s(i)]);
        float fade_2[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            fade_2[i] = exp2_approx(m[i] * 1.442695f - base_log2e_2[i]);
        float sum_p_2[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 2 + i / 2 * 4 + i % 2;
                part[i % 2] = i < 2 ? p_3[e] : part[i % 2] + p_3[e];
            }
            sum_p_2[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            l[i] = l[i] * fade_2[i] + sum_p_2[i];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            acc[i] = acc[i] * fade_2[row_s(i)];
        uint32_t p_4[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            p_4[i] = pack_f16(p_3[2 * i], p_3[2 * i + 1]);
        const uint32_t v_at_2 = v_4 + v_lane;
        #pragma unroll
        for (int k_4 = 0; k_4 < 4; ++k_4) {
            uint32_t v_6[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4_trans(&v_6[i * 4], (v_at_2 ^ (i * 32)) + k_4 * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&acc[ni * 4], &p_4[k_4 * 4], &v_6[ni * 2]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            m[i] = top_2[i];
    }
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    // masked part of the range
    #pragma unroll 1
    for (int cols_tile_3 = whole_from - 1; cols_tile_3 >= cols_tile_from; --cols_tile_3) {
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        const int n_3 = N_tiles_cut_before - cols_tile_3;
        const uint32_t k_tile_7 = k_tile_smem + (n_3 & 1) * 8192;
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        const uint32_t v_7 = v_smem + (n_3 & 1) * 8192;
        wait_group<0>();
        __syncthreads();
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        const int next_3 = cols_tile_3 - 1;
        const bool test_4 = next_3 >= cols_tile_from;
        const uint32_t k_tile_8 = k_tile_smem + ((n_3 + 1) & 1) * 8192;
        const uint32_t k_tile_dst_4 = k_tile_8 + copy_lane;
        const uint32_t v_8 = v_smem + ((n_3 + 1) & 1) * 8192;
        const uint32_t v_dst_4 = v_8 + copy_lane;
        if (test_4) {
            // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
            const int cols_start_5 = next_3 * 64;
            // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
            const f16* k_src_4 = k_base + (long long)cols_start_5 * K_s2;
            const int k_pos_4 = cols_start_5 + copy_row;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill((k_tile_dst_4 ^ (i % 2 * 64)) + i * 512, k_src_4, unsigned(k_pos_4 + i * 4) < unsigned(N) ? 16 : 0);
                k_src_4 += k_step;
            }
            // soft.add(s, V[b, h, cols])  [variants.py:20]
            const f16* v_src_4 = v_base + (long long)cols_start_5 * V_s2;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill((v_dst_4 ^ (i % 2 * 64)) + i * 512, v_src_4, unsigned(k_pos_4 + i * 4) < unsigned(N) ? 16 : 0);
                v_src_4 += v_step;
            }
        }
        commit_group();
        // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
        const int cols_start_6 = cols_tile_3 * 64;
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        float q_dot_k_tile_3[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            q_dot_k_tile_3[i] = 0.0f;
        const uint32_t k_tile_at_3 = k_tile_7 + k_tile_lane;
        #pragma unroll
        for (int k_5 = 0; k_5 < 4; ++k_5) {
            uint32_t k_tile_9[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4(&k_tile_9[i * 4], (k_tile_at_3 ^ (k_5 * 32)) + i * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&q_dot_k_tile_3[ni * 4], &q[k_5 * 4], &k_tile_9[ni * 2]);
        }
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        int limit_2[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int x_6 = pos0 + i * 8 + rows_start;
            limit_2[i] = min(x_6 + 1 - cols_start_6, N - cols_start_6);
        }
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        float s_3[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i) {
            const bool x_7 = i / 4 * 8 + i % 2 < limit_2[row_s(i)] - col0 && i / 4 * 8 + i % 2 > pos0 + i / 2 % 2 * 8 - window + rows_start - cols_start_6 - col0;
            const float x_8 = fmaf(float(i / 4 * 8 + i / 2 % 2 * -8 + i % 2), slope, float(col0 + cols_start_6 - (pos0 + rows_start)) * slope);
            const float x_9 = tanhf(q_dot_k_tile_3[i] * scale_times_rcp_cap) * cap + x_8;
            s_3[i] = x_7 ? x_9 : -INF;
        }
        float max_s_3[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 2 + i / 2 * 4 + i % 2;
                part[i % 2] = i < 2 ? s_3[e] : fmaxf(part[i % 2], s_3[e]);
            }
            max_s_3[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            max_s_3[i] = fmaxf(max_s_3[i], shfl_xor_f32(max_s_3[i], 1));
            max_s_3[i] = fmaxf(max_s_3[i], shfl_xor_f32(max_s_3[i], 2));
        }
        float top_3[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            top_3[i] = fmaxf(m[i], max_s_3[i]);
        float base_5[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_5[i] = top_3[i] == -INF ? 0.0f : top_3[i];
        float base_log2e_3[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_log2e_3[i] = base_5[i] * 1.442695f;
        bool any_far_3 = false;
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            any_far_3 |= fabsf(base_log2e_3[i]) > 8192.0f;
        any_far_3 = __any_sync(0xffffffffu, any_far_3);
        if (any_far_3) {
            bool far_3[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                far_3[i] = fabsf(base_log2e_3[i]) > 8192.0f;
            float base_6[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_6[i] = far_3[i] ? base_5[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_log2e_3[i] = far_3[i] ? 0.0f : base_log2e_3[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s_3[i] = s_3[i] - base_6[row_s(i)];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                m[i] = m[i] - base_6[i];
        }
        float p_5[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            p_5[i] = exp2_approx(s_3[i] * 1.442695f - base_log2e_3[row_s(i)]);
        float fade_3[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            fade_3[i] = exp2_approx(m[i] * 1.442695f - base_log2e_3[i]);
        float sum_p_3[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 2 + i / 2 * 4 + i % 2;
                part[i % 2] = i < 2 ? p_5[e] : part[i % 2] + p_5[e];
            }
            sum_p_3[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            l[i] = l[i] * fade_3[i] + sum_p_3[i];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            acc[i] = acc[i] * fade_3[row_s(i)];
        uint32_t p_6[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            p_6[i] = pack_f16(p_5[2 * i], p_5[2 * i + 1]);
        const uint32_t v_at_3 = v_7 + v_lane;
        #pragma unroll
        for (int k_6 = 0; k_6 < 4; ++k_6) {
            uint32_t v_9[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4_trans(&v_9[i * 4], (v_at_3 ^ (i * 32)) + k_6 * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&acc[ni * 4], &p_6[k_6 * 4], &v_9[ni * 2]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            m[i] = top_3[i];
    }
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        l[i] = l[i] + shfl_xor_f32(l[i], 1);
        l[i] = l[i] + shfl_xor_f32(l[i], 2);
    }
    // fc.store(O[b, h, rows], soft.out().to(O.dtype))  [variants.py:21]
    bool l_is_0[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        l_is_0[i] = l[i] == 0.0f;
    float rcp_l[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        rcp_l[i] = rcp_approx(l[i]);
    uint32_t v0[16];
    #pragma unroll
    for (int i = 0; i < 16; ++i) {
        const float lo = l_is_0[row_s(2 * i)] ? 0.0f : acc[2 * i] * rcp_l[row_s(2 * i)];
        const float hi = l_is_0[row_s(2 * i + 1)] ? 0.0f : acc[2 * i + 1] * rcp_l[row_s(2 * i + 1)];
        v0[i] = pack_f16(lo, hi);
    }
    wait_group<0>();
    __syncthreads();
    const uint32_t tile_lane = swizzle<0x70>(warp * 2048 + lane / 4 * 128 + lane % 4 * 4);
    const uint32_t tile_at = tile_smem + tile_lane;
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        st_shared_b32x1((tile_at ^ (i / 2 * 16)) + i % 2 * 1024, &v0[i]);
    __syncwarp();
    uint32_t o_out[16];
    const uint32_t tile_at_2 = tile_smem + copy_lane;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        ld_shared_b32x4(&o_out[i * 4], (tile_at_2 ^ (i % 2 * 64)) + i * 512);
    f16* o_ptr = O + (long long)b * O_s0 + (long long)h * O_s1 + (long long)(rows_start + copy_row) * O_s2 + copy_col;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        if (q_pos + i * 4 < M) st_global_b32x4(o_ptr + (long long)(i * 4) * O_s2, &o_out[i * 4]);
}
