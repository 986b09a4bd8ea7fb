// two_dots: generated for sm_89
// schedule: tiles={M: 128, N: 64}, warps=4, stages=2
// block:    4 warps, 128 threads
// grid:     b over B
// grid:     h over H
// grid:     i over M in tiles of 128
// shared:   49152 bytes

#define INF __int_as_float(0x7f800000)
using uint32_t = unsigned int;
using bf16 = unsigned short;  // its bits

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
__device__ __forceinline__ void mma_m16n8k16_bf16(float* c, const uint32_t* a, const uint32_t* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
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

// PTX ISA, cvt: two floats to packed bfloat16, the first in the low half
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

// PTX ISA, ldmatrix: 4 blocks of 8 x 8; lane l gives the address of row l % 8 of block l / 8
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t* d, uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
             : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(row) : "memory");
}

// PTX ISA, div: a/b within 2 ulp for |b| from 2^-126 to 2^126
__device__ __forceinline__ float div_approx(float a, float b) {
    float y;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// a register in one global store
__device__ __forceinline__ void st_global_b32x1(void* dst, const uint32_t* v) {
    *static_cast<uint32_t*>(dst) = v[0];
}

// PTX ISA, lg2: absolute error below 2^-22
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Bytes from the start of shared memory.
constexpr uint32_t x_offset = 0;  // bf16[128,64]{panel 64 swizzle 128}
constexpr uint32_t y_offset = 16384;  // bf16[64,64]{panel 64 swizzle 128} x2
constexpr uint32_t z_offset = 32768;  // bf16[64,64]{panel 64 swizzle 128} x2

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int row_p(int i) { return i / 32 * 2 + i / 2 % 2; }

extern "C" __global__ void __launch_bounds__(128, 1)
two_dots_sm_89(const bf16* __restrict__ X, long long X_s0, long long X_s1, long long X_s2, const bf16* __restrict__ Y,
        long long Y_s0, long long Y_s1, long long Y_s2, const bf16* __restrict__ Z, long long Z_s0, long long Z_s1,
        long long Z_s2, bf16* __restrict__ O, long long O_s0, long long O_s1, long long O_s2, float* __restrict__ L,
        long long L_s0, long long L_s1, float c, int H, int M, int N) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    const uint32_t x_smem = smem_base + x_offset;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int i_tiles = (M + 127) / 128;
    const int i_ = int(blockIdx.x) % i_tiles;
    const int rest = int(blockIdx.x) / i_tiles;
    const int h = rest % H;
    const int b = rest / H;
    // spec.py:2
    const int row0 = i_ * 128;
    const uint32_t copy_lane = swizzle<0x70>(warp * 4096 + lane * 16);
    const uint32_t x_dst = x_smem + copy_lane;
    const int copy_row = warp * 32 + lane / 8;
    const int copy_col = lane % 8 * 8;
    const long long x_step = 4 * X_s2;
    const bf16* x_src = X + (long long)b * X_s0 + (long long)h * X_s1 + (long long)(row0 + copy_row) * X_s2 + copy_col;
    const int x_pos = row0 + copy_row;
    #pragma unroll
    for (int i = 0; i < 8; ++i) {
        cp_async_16_fill((x_dst ^ (i % 2 * 64)) + i * 512, x_src, x_pos + i * 4 < M ? 16 : 0);
        x_src += x_step;
    }
    commit_group();
    const int tiles = (N + 63) / 64;
    const uint32_t y_smem = smem_base + y_offset;
    // spec.py:6
    const uint32_t copy_lane_2 = swizzle<0x70>(warp * 2048 + lane * 16);
    const uint32_t y_dst = y_smem + copy_lane_2;
    const int copy_row_2 = warp * 16 + lane / 8;
    const long long y_step = 4 * Y_s2;
    const bf16* y_src = Y + (long long)b * Y_s0 + (long long)h * Y_s1 + (long long)copy_row_2 * Y_s2 + copy_col;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        cp_async_16_fill((y_dst ^ (i % 2 * 64)) + i * 512, y_src, copy_row_2 + i * 4 < N ? 16 : 0);
        y_src += y_step;
    }
    const uint32_t z_smem = smem_base + z_offset;
    const uint32_t z_dst = z_smem + copy_lane_2;
    const long long z_step = 4 * Z_s2;
    const bf16* z_src = Z + (long long)b * Z_s0 + (long long)h * Z_s1 + (long long)copy_row_2 * Z_s2 + copy_col;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        cp_async_16_fill((z_dst ^ (i % 2 * 64)) + i * 512, z_src, copy_row_2 + i * 4 < N ? 16 : 0);
        z_src += z_step;
    }
    commit_group();
    wait_group<1>();
    __syncthreads();
    // spec.py:3
    uint32_t xf[32];
    const uint32_t x_lane = swizzle<0x70>(warp * 4096 + lane / 16 * 16 + lane % 16 * 128);
    const uint32_t x_at = x_smem + x_lane;
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        ldmatrix_x4(&xf[i * 4], (x_at ^ (i % 4 * 32)) + i / 4 * 2048);
    // spec.py:5
    float mx[4];
    float l[4];
    float acc[64];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        mx[i] = -INF;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        l[i] = 0.0f;
    #pragma unroll
    for (int i = 0; i < 64; ++i)
        acc[i] = 0.0f;
    const bf16* y_base = Y + (long long)b * Y_s0 + (long long)h * Y_s1 + (long long)copy_row_2 * Y_s2 + copy_col;
    const bf16* z_base = Z + (long long)b * Z_s0 + (long long)h * Z_s1 + (long long)copy_row_2 * Z_s2 + copy_col;
    const uint32_t y_lane = swizzle<0x70>(lane / 16 * 1024 + lane / 8 % 2 * 16 + lane % 8 * 128);
    const int cols0 = lane % 4 * 2;
    const uint32_t z_lane = swizzle<0x70>(lane / 16 * 16 + lane % 16 * 128);
    #pragma unroll 1
    for (int j_ = 0; j_ < tiles; ++j_) {
        wait_group<0>();
        __syncthreads();
        // spec.py:6
        const int col0 = (j_ + 1) * 64;
        const uint32_t y_next = y_smem + ((j_ + 1) & 1) * 8192;
        const uint32_t y_dst_2 = y_next + copy_lane_2;
        const bf16* y_src_2 = y_base + (long long)col0 * Y_s2;
        const int y_pos = col0 + copy_row_2;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill((y_dst_2 ^ (i % 2 * 64)) + i * 512, y_src_2, y_pos + i * 4 < N ? 16 : 0);
            y_src_2 += y_step;
        }
        const uint32_t z_next = z_smem + ((j_ + 1) & 1) * 8192;
        const uint32_t z_dst_2 = z_next + copy_lane_2;
        const bf16* z_src_2 = z_base + (long long)col0 * Z_s2;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill((z_dst_2 ^ (i % 2 * 64)) + i * 512, z_src_2, y_pos + i * 4 < N ? 16 : 0);
            z_src_2 += z_step;
        }
        commit_group();
        const uint32_t y_slot = y_smem + (j_ & 1) * 8192;
        const uint32_t z_slot = z_smem + (j_ & 1) * 8192;
        // spec.py:7
        float s[64];
        #pragma unroll
        for (int i = 0; i < 64; ++i)
            s[i] = 0.0f;
        const uint32_t y_at = y_slot + y_lane;
        #pragma unroll
        for (int k = 0; k < 4; ++k) {
            uint32_t yf[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4(&yf[i * 4], (y_at ^ (k * 32)) + i * 2048);
            #pragma unroll
            for (int mi = 0; mi < 2; ++mi)
                #pragma unroll
                for (int ni = 0; ni < 8; ++ni)
                    mma_m16n8k16_bf16(&s[mi * 32 + ni * 4], &xf[k * 4 + mi * 16], &yf[ni * 2]);
        }
        // spec.py:8
        float s_2[64];
        #pragma unroll
        for (int i = 0; i < 64; ++i)
            s_2[i] = cols0 + i / 4 % 8 * 8 + i % 2 + j_ * 64 < N ? s[i] : -INF;
        // spec.py:9
        float r[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j / 2 * 32 + j % 2 * 2 + i / 2 * 4 + i % 2;
                part[i % 2] = i < 2 ? s_2[e] : fmaxf(part[i % 2], s_2[e]);
            }
            r[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            r[i] = fmaxf(r[i], shfl_xor_f32(r[i], 1));
            r[i] = fmaxf(r[i], shfl_xor_f32(r[i], 2));
        }
        float new_[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            new_[i] = fmaxf(mx[i], r[i]);
        // spec.py:10
        float a[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            a[i] = exp2_approx((mx[i] - new_[i]) * c);
        float nc[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            nc[i] = new_[i] * c;
        // spec.py:11
        float p[64];
        #pragma unroll
        for (int i = 0; i < 64; ++i)
            p[i] = exp2_approx(s_2[i] * c - nc[row_p(i)]);
        // spec.py:12
        float ps[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j / 2 * 32 + j % 2 * 2 + i / 2 * 4 + i % 2;
                part[i % 2] = i < 2 ? p[e] : part[i % 2] + p[e];
            }
            ps[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            ps[i] = ps[i] + shfl_xor_f32(ps[i], 1);
            ps[i] = ps[i] + shfl_xor_f32(ps[i], 2);
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            l[i] = l[i] * a[i] + ps[i];
        // spec.py:13
        uint32_t h_2[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            h_2[i] = pack_bf16(p[2 * i], p[2 * i + 1]);
        #pragma unroll
        for (int i = 0; i < 64; ++i)
            acc[i] = acc[i] * a[row_p(i)];
        const uint32_t z_at = z_slot + z_lane;
        #pragma unroll
        for (int k_2 = 0; k_2 < 4; ++k_2) {
            uint32_t zf[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4_trans(&zf[i * 4], (z_at ^ (i * 32)) + k_2 * 2048);
            #pragma unroll
            for (int mi = 0; mi < 2; ++mi)
                #pragma unroll
                for (int ni = 0; ni < 8; ++ni)
                    mma_m16n8k16_bf16(&acc[mi * 32 + ni * 4], &h_2[k_2 * 4 + mi * 16], &zf[ni * 2]);
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            mx[i] = new_[i];
    }
    // spec.py:14
    uint32_t out[32];
    #pragma unroll
    for (int i = 0; i < 32; ++i) {
        const float lo = div_approx(acc[2 * i], l[row_p(2 * i)]);
        const float hi = div_approx(acc[2 * i + 1], l[row_p(2 * i + 1)]);
        out[i] = pack_bf16(lo, hi);
    }
    const int o_row = warp * 32 + lane / 4;
    bf16* o_ptr = O + (long long)b * O_s0 + (long long)h * O_s1 + (long long)(row0 + o_row) * O_s2 + cols0;
    const int o_pos = row0 + o_row;
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        if (o_pos + i / 16 * 16 + i % 2 * 8 < M) st_global_b32x1(o_ptr + (long long)(i / 16 * 16 + i % 2 * 8) * O_s2 + i / 2 % 8 * 8, &out[i]);
    // spec.py:15
    float st[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        st[i] = mx[i] + log2_approx(l[i]);
    float* l_ptr = L + (long long)b * L_s0 + (long long)h * L_s1 + row0 + o_row;
    if (lane % 4 == 0) {
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            if (o_pos + i * 8 < M) l_ptr[i * 8] = st[i];
    }
}
