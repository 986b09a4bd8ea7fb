// Runs generated CUDA C++ on the host: one fiber per thread, warp and block barriers that hand over to the next fiber, and the
// instructions the generated text calls, written out from the PTX tables (independently of the compiler's layout code).
#include <ucontext.h>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__
#define __align__(n) __attribute__((aligned(n)))

struct Dim { unsigned x; };
static Dim threadIdx, blockIdx;
alignas(1024) unsigned char smem[256 * 1024];
using std::max;
using std::min;

struct Barrier { int count = 0, gen = 0; };
static Barrier block_barrier, warp_barrier[32];
static uint32_t lane_words[32][32][8];  // [warp][lane]: what each lane gives to a collective
static std::vector<ucontext_t> fibers;
static std::vector<char> done;
static ucontext_t scheduler;
static int current, threads;

static void yield() {
    const int me = current;
    swapcontext(&fibers[me], &scheduler);
    current = me;
    threadIdx.x = me;
}
static void arrive(Barrier& b, int n) {
    const int gen = b.gen;
    if (++b.count == n) { b.count = 0; ++b.gen; }
    else while (b.gen == gen) yield();
}
static void __syncthreads() { arrive(block_barrier, threads); }
static void __syncwarp() { arrive(warp_barrier[current / 32], 32); }

// Every lane gives up to 8 words; `all[lane]` holds them until the second barrier.
template <class F> static void collective(const void* words, int n, F f) {
    const int w = current / 32;
    memcpy(lane_words[w][current % 32], words, n * 4);
    __syncwarp();
    f(lane_words[w]);
    __syncwarp();
}
template <class T> static T __shfl_xor_sync(unsigned, T x, int lanes) {
    T out;
    collective(&x, sizeof(T) / 4, [&](uint32_t (*all)[8]) { memcpy(&out, all[(current % 32) ^ lanes], sizeof(T)); });
    return out;
}
template <class T> static T __shfl_up_sync(unsigned, T x, int lanes) {
    T out;
    const int l = current % 32;
    collective(&x, sizeof(T) / 4, [&](uint32_t (*all)[8]) { memcpy(&out, all[l < lanes ? l : l - lanes], sizeof(T)); });
    return out;
}
static int __shfl_sync(unsigned, int x, int lane) {
    int out;
    collective(&x, 1, [&](uint32_t (*all)[8]) { out = all[lane][0]; });
    return out;
}
static bool __any_sync(unsigned, bool p) {
    uint32_t x = p, out = 0;
    collective(&x, 1, [&](uint32_t (*all)[8]) { for (int l = 0; l < 32; ++l) out |= all[l][0]; });
    return out;
}

static float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static float __int_as_float(uint32_t u) { return __uint_as_float(u); }
static uint32_t bits_of(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static float to_f32_f16(unsigned short h) { _Float16 x; memcpy(&x, &h, 2); return (float)x; }
static uint32_t half_bits(float f) { _Float16 x = (_Float16)f; unsigned short h; memcpy(&h, &x, 2); return h; }
static uint32_t bf16_bits(float f) { const uint32_t u = bits_of(f); return f != f ? 0x7fff : (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
static uint32_t pack_f16(float lo, float hi) { return half_bits(lo) | half_bits(hi) << 16; }
static float half_of_word(uint32_t x, int i) { return to_f32_f16((unsigned short)(x >> 16 * i)); }
static uint32_t add_f16x2(uint32_t a, uint32_t b) { return pack_f16(half_of_word(a, 0) + half_of_word(b, 0), half_of_word(a, 1) + half_of_word(b, 1)); }
static uint32_t sub_f16x2(uint32_t a, uint32_t b) { return pack_f16(half_of_word(a, 0) - half_of_word(b, 0), half_of_word(a, 1) - half_of_word(b, 1)); }
static uint32_t mul_f16x2(uint32_t a, uint32_t b) { return pack_f16(half_of_word(a, 0) * half_of_word(b, 0), half_of_word(a, 1) * half_of_word(b, 1)); }
static uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    const auto one = [&](int i) { return half_of_word(a, i) * (double)half_of_word(b, i) + half_of_word(c, i); };
    return pack_f16((float)one(0), (float)one(1));
}
static uint32_t pack_bf16(float lo, float hi) { return bf16_bits(lo) | bf16_bits(hi) << 16; }
static uint32_t __float_as_uint(float f) { return bits_of(f); }
static int __float2int_rn(float f) { return (int)nearbyintf(f); }
template <class T, class F> static T nearest_below(F x) {  // cvt.rzi: saturates, NaN is 0
    if (x != x) return 0;
    const double low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    return x <= low ? std::numeric_limits<T>::min() : x >= high ? std::numeric_limits<T>::max() : (T)x;
}
static int __float2int_rz(float x) { return nearest_below<int>(x); }
static uint32_t __float2uint_rz(float x) { return nearest_below<uint32_t>(x); }
static int __mulhi(int a, int b) { return (int)(((int64_t)a * b) >> 32); }
static int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)(((uint64_t)a * b) >> 32); }
static uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t s) {
    const uint64_t both = (uint64_t)b << 32 | a;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) out |= (uint32_t)(both >> 8 * (s >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}
static float exp2_approx(float x) { return exp2f(x); }
static float log2_approx(float x) { return log2f(x); }
static float rcp_approx(float x) { return 1 / x; }
static float sqrt_approx(float x) { return sqrtf(x); }
static float rsqrt_approx(float x) { return 1 / sqrtf(x); }
static uint64_t mul_wide_u32(uint32_t a, uint32_t b) { return (uint64_t)a * b; }
static float tanh_approx(float x) { return tanhf(x); }
#define __sinf sinf
#define __cosf cosf
static float div_approx(float a, float b) { return a / b; }

struct float2 { float x, y; }; struct float4 { float x, y, z, w; };
struct uint2 { uint32_t x, y; }; struct uint4 { uint32_t x, y, z, w; };
struct int2 { int x, y; }; struct int4 { int x, y, z, w; };
static float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
static float2 make_float2(float a, float b) { return {a, b}; }
static int4 make_int4(int a, int b, int c, int d) { return {a, b, c, d}; }
static uint4 make_uint4(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return {a, b, c, d}; }
static uint2 make_uint2(uint32_t a, uint32_t b) { return {a, b}; }

static size_t __cvta_generic_to_shared(const void* p) { return (const unsigned char*)p - smem; }
static unsigned char* shared(uint32_t at, int bytes) {
    if (at % bytes || at + bytes > sizeof smem) { fprintf(stderr, "bad shared address %u for %d bytes\n", at, bytes); abort(); }
    return smem + at;
}
// Copies land when their group is waited for: as late as the hardware may.
struct Copy { uint32_t dst; const void* src; int bytes, size; };
static std::vector<std::vector<Copy>> groups[1024];
static std::vector<Copy> open_group[1024];
static void start_copy(uint32_t dst, const void* src, int bytes, int size) { open_group[current].push_back({dst, src, bytes, size}); }
static void cp_async_16(uint32_t d, const void* s) { start_copy(d, s, 16, 16); }
static void cp_async_8(uint32_t d, const void* s) { start_copy(d, s, 8, 8); }
static void cp_async_4(uint32_t d, const void* s) { start_copy(d, s, 4, 4); }
static void cp_async_16_fill(uint32_t d, const void* s, int n) { start_copy(d, s, n, 16); }
static void cp_async_8_fill(uint32_t d, const void* s, int n) { start_copy(d, s, n, 8); }
static void cp_async_4_fill(uint32_t d, const void* s, int n) { start_copy(d, s, n, 4); }
static void commit_group() { groups[current].push_back(open_group[current]); open_group[current].clear(); }
template <int N> static void wait_group() {
    auto& g = groups[current];
    while ((int)g.size() > N) {
        for (auto& c : g.front()) { memset(shared(c.dst, c.size), 0, c.size); memcpy(shared(c.dst, c.size), c.src, c.bytes); }
        g.erase(g.begin());
    }
}
template <class T> static void ld_shared(T* d, uint32_t at, int n) { memcpy(d, shared(at, n * sizeof(T)), n * sizeof(T)); }
template <class T> static void st_shared(uint32_t at, const T* v, int n) { memcpy(shared(at, n * sizeof(T)), v, n * sizeof(T)); }
#define WIDTHS(tag, T) \
    static void ld_shared_##tag##x1(T* d, uint32_t a) { ld_shared(d, a, 1); } static void st_shared_##tag##x1(uint32_t a, const T* v) { st_shared(a, v, 1); } \
    static void ld_shared_##tag##x2(T* d, uint32_t a) { ld_shared(d, a, 2); } static void st_shared_##tag##x2(uint32_t a, const T* v) { st_shared(a, v, 2); } \
    static void ld_shared_##tag##x4(T* d, uint32_t a) { ld_shared(d, a, 4); } static void st_shared_##tag##x4(uint32_t a, const T* v) { st_shared(a, v, 4); }
WIDTHS(f32, float) WIDTHS(b32, uint32_t) WIDTHS(i32, int)
static unsigned short ld_shared_b16(uint32_t a) { unsigned short h; memcpy(&h, shared(a, 2), 2); return h; }
static void st_shared_b16(uint32_t a, unsigned short v) { memcpy(shared(a, 2), &v, 2); }
static unsigned short ld_shared_b8(uint32_t a) { return *shared(a, 1); }
static void st_shared_b8(uint32_t a, unsigned short v) { *shared(a, 1) = (unsigned char)v; }
static void red_add_f32(float* p, float v) { *p += v; }
static void red_add_i32(int* p, int v) { *p += v; }
static void red_add_f16(unsigned short* p, unsigned short v) { *p = half_bits(to_f32_f16(*p) + to_f32_f16(v)); }
static void red_add_f16x2(unsigned short* p, uint32_t v) {
    for (int i = 0; i < 2; ++i) p[i] = half_bits(to_f32_f16(p[i]) + to_f32_f16(v >> 16 * i));
}

static void load_blocks(uint32_t* d, uint32_t row, int count, bool trans) {
    collective(&row, 1, [&](uint32_t (*all)[8]) {
        const int l = current % 32;
        for (int b = 0; b < count; ++b) {
            unsigned short h[2];
            for (int e = 0; e < 2; ++e) {
                const int r = trans ? l % 4 * 2 + e : l / 4, c = trans ? l / 4 : l % 4 * 2 + e;
                memcpy(&h[e], shared(all[b * 8 + r][0], 16) + 2 * c, 2);
            }
            d[b] = h[0] | (uint32_t)h[1] << 16;
        }
    });
}
static void ldmatrix_x4(uint32_t* d, uint32_t r) { load_blocks(d, r, 4, false); }
static void ldmatrix_x2(uint32_t* d, uint32_t r) { load_blocks(d, r, 2, false); }
static void ldmatrix_x1(uint32_t* d, uint32_t r) { load_blocks(d, r, 1, false); }
static void ldmatrix_x4_trans(uint32_t* d, uint32_t r) { load_blocks(d, r, 4, true); }
static void ldmatrix_x2_trans(uint32_t* d, uint32_t r) { load_blocks(d, r, 2, true); }
static void ldmatrix_x1_trans(uint32_t* d, uint32_t r) { load_blocks(d, r, 1, true); }

static void mma(float* c, const uint32_t* a, const uint32_t* b, float (*f)(uint32_t)) {
    uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    collective(words, 6, [&](uint32_t (*all)[8]) {
        const int l = current % 32;
        for (int i = 0; i < 4; ++i) {
            const int row = l / 4 + (i >= 2 ? 8 : 0), col = l % 4 * 2 + i % 2;
            double sum = c[i];
            for (int k = 0; k < 16; ++k) {
                const int wa = (row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0), la = row % 8 * 4 + k % 8 / 2;
                const int wb = k >= 8 ? 1 : 0, lb = col * 4 + k % 8 / 2;
                sum += (double)f(all[la][wa] >> 16 * (k % 2) & 0xffff) * f(all[lb][4 + wb] >> 16 * (k % 2) & 0xffff);
            }
            c[i] = (float)sum;
        }
    });
}
static float f16_value(uint32_t h) { return to_f32_f16((unsigned short)h); }
static float bf16_value(uint32_t h) { return __uint_as_float(h << 16); }
static void mma_m16n8k16_f16(float* c, const uint32_t* a, const uint32_t* b) { mma(c, a, b, f16_value); }
static void mma_m16n8k16_bf16(float* c, const uint32_t* a, const uint32_t* b) { mma(c, a, b, bf16_value); }

static void (*kernel_body)();
static void enter() {
    const int me = current;
    threadIdx.x = me;
    kernel_body();
    done[me] = 1;
    swapcontext(&fibers[me], &scheduler);
}
static void launch(int blocks, int n) {
    threads = n;
    std::vector<std::vector<char>> stacks(n, std::vector<char>(256 * 1024));
    for (int b = 0; b < blocks; ++b) {
        blockIdx.x = b;
        memset(smem, 0xff, sizeof smem);  // NaNs: reading what nobody wrote shows
        block_barrier = Barrier();
        for (auto& w : warp_barrier) w = Barrier();
        for (auto& g : groups) g.clear();
        for (auto& g : open_group) g.clear();
        fibers.assign(n, ucontext_t());
        done.assign(n, 0);
        for (int t = 0; t < n; ++t) {
            getcontext(&fibers[t]);
            fibers[t].uc_stack.ss_sp = stacks[t].data(); fibers[t].uc_stack.ss_size = stacks[t].size();
            fibers[t].uc_link = nullptr;
            makecontext(&fibers[t], enter, 0);
        }
        for (int left = n; left;) {
            left = 0;
            for (int t = 0; t < n; ++t)
                if (!done[t]) { current = t; threadIdx.x = t; swapcontext(&scheduler, &fibers[t]); left += !done[t]; }
        }
    }
}
