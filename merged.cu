// attention: generated for sm_90a
// schedule: tiles={BLOCK_M: 128, BLOCK_N: 128}, warps=8, math=wgmma, copy=tma, stages={k: 2, q: 2, v: 2}, epilogue=quad, late=acc, vote=True, tokens=True, persist ...
// block:    12 warps, 384 threads: load 4 warps of 40 registers, main 8 warps of 232 registers
// grid:     b over B
// grid:     h over H
// grid:     rows_tile over M in tiles of 128, last first
// shared:   199680 bytes

#define INF __int_as_float(0x7f800000)
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
struct __align__(64) TensorMap { unsigned char bytes[128]; };  // made by cuTensorMapEncodeTiled
using f16 = unsigned short;  // its bits
constexpr int BESIDE = 65535;  // less in a descriptor: 16 bytes more of address, as many less to the leading panel

// x, which the compiler then keeps in a register instead of computing it again
__device__ __forceinline__ uint32_t opaque(uint32_t x) {
    asm volatile("mov.b32 %0, %0;" : "+r"(x));
    return x;
}

// PTX ISA, mbarrier.init
__device__ __forceinline__ void mbar_init(uint32_t bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}

// PTX ISA, fence.mbarrier_init
__device__ __forceinline__ void mbar_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// PTX ISA, fence.proxy.async
__device__ __forceinline__ void proxy_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// a / b rounded down
__device__ __forceinline__ int floor_div(int a, int b) {
    const int q = a / b;
    return q - (q * b != a && (a < 0) != (b < 0));
}

// PTX ISA, griddepcontrol.wait: the grids that this one was launched to overlap have ended
__device__ __forceinline__ void grid_wait() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// PTX ISA, griddepcontrol
__device__ __forceinline__ void launch_dependents() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// the rest of floor_div: has the sign of b
__device__ __forceinline__ int floor_mod(int a, int b) {
    return a - floor_div(a, b) * b;
}

// PTX ISA, mbarrier.try_wait.parity, until the phase of that parity has ended
__device__ __forceinline__ void mbar_wait(uint32_t bar, uint32_t parity) {
    asm volatile("{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}"
             :: "r"(bar), "r"(parity) : "memory");
}

// PTX ISA, st
__device__ __forceinline__ void post_i32(uint32_t dst, int x) {
    asm volatile("st.shared.b32 [%0], %1;" :: "r"(dst), "r"(x) : "memory");
}

// PTX ISA, mbarrier.arrive.expect_tx
__device__ __forceinline__ void mbar_expect(uint32_t bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
}

// PTX ISA, cp.async.bulk.tensor: one box, coordinates from the innermost axis
__device__ __forceinline__ void tma_load_4d(uint32_t dst, const TensorMap& map, uint32_t bar, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
             "[%0], [%1, {%3, %4, %5, %6}], [%2];"
             :: "r"(dst), "l"(&map), "r"(bar), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}

// PTX ISA, cvt: two floats to packed halves, the first in the low half
__device__ __forceinline__ uint32_t pack_f16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

// XOR of the 16-byte chunk number with the row number (PTX ISA, Swizzling modes)
template <int Mask>
__device__ __forceinline__ uint32_t swizzle(uint32_t offset) {
    return offset ^ ((offset >> 3) & Mask);
}

// PTX ISA, st
__device__ __forceinline__ void st_shared_b32x4(uint32_t dst, const uint32_t* v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" :: "r"(dst), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}

// PTX ISA, bar.sync: a named barrier of some of the block's threads
__device__ __forceinline__ void bar_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

// PTX ISA, bar.arrive
__device__ __forceinline__ void bar_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

// PTX ISA, ld; the shuffle tells the compiler that all lanes have the same
__device__ __forceinline__ int fetch_i32(uint32_t src) {
    int x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(src) : "memory");
    return __shfl_sync(0xffffffffu, x, 0);
}

// PTX ISA, mbarrier.arrive
__device__ __forceinline__ void mbar_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory");
}

// PTX ISA, ldmatrix: 4 blocks of 8 x 8; lane l gives the address of row l % 8 of block l / 8
__device__ __forceinline__ void ldmatrix_x4(uint32_t* d, uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
             : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(row) : "memory");
}

// as touch
template <int N>
__device__ __forceinline__ void touch_b32(uint32_t (&r)[N]) {
    #pragma unroll
    for (int i = 0; i < N; i += 4) asm volatile("" : "+r"(r[i]), "+r"(r[i + 1]), "+r"(r[i + 2]), "+r"(r[i + 3]) :: "memory");
}

// PTX ISA, wgmma.fence: register accesses before it come before the wgmmas after it
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// PTX ISA, wgmma.mma_async: d[64 x 128] (+)= a b, a in registers
template <int TransB>
__device__ __forceinline__ void wgmma_m64n128k16_f16_rs(float* d, const uint32_t* a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
             "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
             "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TransB) : "memory");
}

// PTX ISA, matrix descriptor: address, byte offsets of panels and of 8-row groups, swizzle code
template <int Swizzle, int Lbo, int Sbo>
__device__ __forceinline__ uint64_t smem_desc(uint32_t addr) {
    return uint64_t(Swizzle) << 62 | uint64_t(Sbo >> 4) << 32 | uint64_t(Lbo >> 4) << 16 | (addr & 0x3ffff) >> 4;
}

__device__ __forceinline__ void wgmma_m64n128k16_f16_rs_x8_0_f_8130(float* d, const uint32_t* a, uint64_t b) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, 0, 0;\n"
"add.s64 b, %96, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, b, p, 1, 1, 0;\n"
"setp.ne.b32 p, 0, 1;\n"
"add.s64 b, %96, 2;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%68, %69, %70, %71}, b, p, 1, 1, 0;\n"
"add.s64 b, %96, 4;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%72, %73, %74, %75}, b, p, 1, 1, 0;\n"
"add.s64 b, %96, 6;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%76, %77, %78, %79}, b, p, 1, 1, 0;\n"
"add.s64 b, %96, 1024;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%80, %81, %82, %83}, b, p, 1, 1, 0;\n"
"add.s64 b, %96, 1026;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%84, %85, %86, %87}, b, p, 1, 1, 0;\n"
"add.s64 b, %96, 1028;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%88, %89, %90, %91}, b, p, 1, 1, 0;\n"
"add.s64 b, %96, 1030;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%92, %93, %94, %95}, b, p, 1, 1, 0;\n"
"}" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]), "r"(a[6]), "r"(a[7]), "r"(a[8]), "r"(a[9]), "r"(a[10]), "r"(a[11]), "r"(a[12]), "r"(a[13]), "r"(a[14]), "r"(a[15]), "r"(a[16]), "r"(a[17]), "r"(a[18]), "r"(a[19]), "r"(a[20]), "r"(a[21]), "r"(a[22]), "r"(a[23]), "r"(a[24]), "r"(a[25]), "r"(a[26]), "r"(a[27]), "r"(a[28]), "r"(a[29]), "r"(a[30]), "r"(a[31]), "l"(b) : "memory");
}

__device__ __forceinline__ void wgmma_m64n64k16_f16_rs_x8_1_t_4024(float* d, const uint32_t* a, uint64_t b) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, 0, 1;\n"
"add.s64 b, %64, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, b, p, 1, 1, 1;\n"
"add.s64 b, %64, 128;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%36, %37, %38, %39}, b, p, 1, 1, 1;\n"
"add.s64 b, %64, 256;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%40, %41, %42, %43}, b, p, 1, 1, 1;\n"
"add.s64 b, %64, 384;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%44, %45, %46, %47}, b, p, 1, 1, 1;\n"
"add.s64 b, %64, 512;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%48, %49, %50, %51}, b, p, 1, 1, 1;\n"
"add.s64 b, %64, 640;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%52, %53, %54, %55}, b, p, 1, 1, 1;\n"
"add.s64 b, %64, 768;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%56, %57, %58, %59}, b, p, 1, 1, 1;\n"
"add.s64 b, %64, 896;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%60, %61, %62, %63}, b, p, 1, 1, 1;\n"
"}" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]), "r"(a[6]), "r"(a[7]), "r"(a[8]), "r"(a[9]), "r"(a[10]), "r"(a[11]), "r"(a[12]), "r"(a[13]), "r"(a[14]), "r"(a[15]), "r"(a[16]), "r"(a[17]), "r"(a[18]), "r"(a[19]), "r"(a[20]), "r"(a[21]), "r"(a[22]), "r"(a[23]), "r"(a[24]), "r"(a[25]), "r"(a[26]), "r"(a[27]), "r"(a[28]), "r"(a[29]), "r"(a[30]), "r"(a[31]), "l"(b) : "memory");
}

__device__ __forceinline__ void wgmma_m64n72k16_f16_rs_x8_1_t_6526(float* d, const uint32_t* a, uint64_t b) {
    asm volatile("{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, 0, 1;\n"
"add.s64 b, %68, 0;\nwgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, {%36, %37, %38, %39}, b, p, 1, 1, 1;\n"
"add.s64 b, %68, -8388480;\nwgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, {%40, %41, %42, %43}, b, p, 1, 1, 1;\n"
"add.s64 b, %68, -16776960;\nwgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, {%44, %45, %46, %47}, b, p, 1, 1, 1;\n"
"add.s64 b, %68, -25165440;\nwgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, {%48, %49, %50, %51}, b, p, 1, 1, 1;\n"
"add.s64 b, %68, -33553920;\nwgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, {%52, %53, %54, %55}, b, p, 1, 1, 1;\n"
"add.s64 b, %68, -41942400;\nwgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, {%56, %57, %58, %59}, b, p, 1, 1, 1;\n"
"add.s64 b, %68, -50330880;\nwgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, {%60, %61, %62, %63}, b, p, 1, 1, 1;\n"
"add.s64 b, %68, -58719360;\nwgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, {%64, %65, %66, %67}, b, p, 1, 1, 1;\n"
"}" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]), "r"(a[6]), "r"(a[7]), "r"(a[8]), "r"(a[9]), "r"(a[10]), "r"(a[11]), "r"(a[12]), "r"(a[13]), "r"(a[14]), "r"(a[15]), "r"(a[16]), "r"(a[17]), "r"(a[18]), "r"(a[19]), "r"(a[20]), "r"(a[21]), "r"(a[22]), "r"(a[23]), "r"(a[24]), "r"(a[25]), "r"(a[26]), "r"(a[27]), "r"(a[28]), "r"(a[29]), "r"(a[30]), "r"(a[31]), "l"(b) : "memory");
}
// PTX ISA, wgmma.commit_group
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// PTX ISA, wgmma.wait_group: at most N of this warpgroup's groups stay in flight
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}

// no instruction: the compiler may not move accesses of these registers over this point
template <int N>
__device__ __forceinline__ void touch(float (&r)[N]) {
    #pragma unroll
    for (int i = 0; i < N; i += 4) asm volatile("" : "+f"(r[i]), "+f"(r[i + 1]), "+f"(r[i + 2]), "+f"(r[i + 3]) :: "memory");
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

// PTX ISA, wgmma.mma_async: d[64 x 72] (+)= a b, a in registers
template <int TransB>
__device__ __forceinline__ void wgmma_m64n72k16_f16_rs(float* d, const uint32_t* a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %41, 0;\n"
             "wgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 "
             "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, {%36, %37, %38, %39}, %40, p, 1, 1, %42;\n}"
             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TransB) : "memory");
}

// PTX ISA, wgmma.mma_async: d[64 x 64] (+)= a b, a in registers
template <int TransB>
__device__ __forceinline__ void wgmma_m64n64k16_f16_rs(float* d, const uint32_t* a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
             "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
             "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
             : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TransB) : "memory");
}

// PTX ISA, div: a/b within 2 ulp for |b| from 2^-126 to 2^126
__device__ __forceinline__ float div_approx(float a, float b) {
    float y;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// the largest of three: one instruction, for two new numbers
__device__ __forceinline__ int vmax3(int a, int b, int c) {
    return __vimax3_s32(a, b, c);
}

// PTX ISA, rcp: 1/x within 1 ulp
__device__ __forceinline__ float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// word k of lane q goes to lane k, which keeps it as word q: four shuffles for four words
__device__ __forceinline__ void quad_transpose(uint32_t* w, int lane) {
    const bool odd = lane & 1, high = lane & 2;
    uint32_t x;
    x = odd ? w[0] : w[1];
    x = __shfl_xor_sync(0xffffffffu, x, 1);
    w[0] = odd ? x : w[0];
    w[1] = odd ? w[1] : x;
    x = odd ? w[2] : w[3];
    x = __shfl_xor_sync(0xffffffffu, x, 1);
    w[2] = odd ? x : w[2];
    w[3] = odd ? w[3] : x;
    x = high ? w[0] : w[2];
    x = __shfl_xor_sync(0xffffffffu, x, 2);
    w[0] = high ? x : w[0];
    w[2] = high ? w[2] : x;
    x = high ? w[1] : w[3];
    x = __shfl_xor_sync(0xffffffffu, x, 2);
    w[1] = high ? x : w[1];
    w[3] = high ? w[3] : x;
}

// 4 registers in one global store
__device__ __forceinline__ void st_global_b32x4(void* dst, const uint32_t* v) {
    *static_cast<uint4*>(dst) = make_uint4(v[0], v[1], v[2], v[3]);
}

// PTX ISA, setmaxnreg
template <int Regs>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(Regs));
}

// PTX ISA, setmaxnreg
template <int Regs>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(Regs));
}

// Bytes from the start of shared memory.
constexpr uint32_t q_offset = 0;  // f16[128,128]{panel 64 swizzle 128} x2
constexpr uint32_t k_offset = 65536;  // f16[128,128]{panel 64 swizzle 128} x2
constexpr uint32_t v_offset = 131072;  // f16[128,128]{panel 64 swizzle 128} x2
constexpr uint32_t next_offset = 196608;  // i32[4]{panel 4} x2
constexpr uint32_t q_full_offset = 196864;  // mbarrier count 1 x2
constexpr uint32_t q_empty_offset = 196880;  // mbarrier count 8 x2
constexpr uint32_t k_full_offset = 196896;  // mbarrier count 1 x2
constexpr uint32_t k_empty_offset = 196912;  // mbarrier count 8 x2
constexpr uint32_t v_full_offset = 196928;  // mbarrier count 1 x2
constexpr uint32_t v_empty_offset = 196944;  // mbarrier count 8 x2
constexpr uint32_t next_full_offset = 196960;  // mbarrier count 1 x2
constexpr uint32_t next_empty_offset = 196976;  // mbarrier count 8 x2
constexpr uint32_t ones_offset = 197632;  // f16[16,64]{panel 64 swizzle 128}

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int row_s(int i) { return i / 2 % 2; }
__device__ constexpr int row_acc(int i) { return i / 2 % 2; }

extern "C" __global__ void __launch_bounds__(384, 1)
attention_sm_90a(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
        const __grid_constant__ TensorMap v_map, f16* __restrict__ O, long long O_s0, long long O_s1, long long O_s2,
        int* counter, float scale, int B, int H, int M, int G, int N) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = opaque(static_cast<uint32_t>(__cvta_generic_to_shared(smem)));
    const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // warpgroup: known to be the same in all lanes
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; ++i) mbar_init(smem_base + q_full_offset + 8 * i, 1);
        for (int i = 0; i < 2; ++i) mbar_init(smem_base + q_empty_offset + 8 * i, 8);
        for (int i = 0; i < 2; ++i) mbar_init(smem_base + k_full_offset + 8 * i, 1);
        for (int i = 0; i < 2; ++i) mbar_init(smem_base + k_empty_offset + 8 * i, 8);
        for (int i = 0; i < 2; ++i) mbar_init(smem_base + v_full_offset + 8 * i, 1);
        for (int i = 0; i < 2; ++i) mbar_init(smem_base + v_empty_offset + 8 * i, 8);
        for (int i = 0; i < 2; ++i) mbar_init(smem_base + next_full_offset + 8 * i, 1);
        for (int i = 0; i < 2; ++i) mbar_init(smem_base + next_empty_offset + 8 * i, 8);
        mbar_init_fence();
        proxy_fence();
    }
    __syncthreads();
    if (group < 1) {  // role load: 4 warps
        setmaxnreg_dec<40>();
        if (threadIdx.x == 0) {  // one thread
            int next_slot = 0;
            uint32_t next_parity = 0;
            int q_slot = 0;
            uint32_t q_parity = 0;
            int k_slot = 0;
            uint32_t k_parity = 0;
            int v_slot = 0;
            uint32_t v_parity = 0;
            const int rows_tile_tiles = (M + 127) / 128;
            const int others = H * B;
            const int N_times_256 = 256 * N;
            const int fit_in_l2_or_enough = max(33554432 / max(N_times_256 + N_times_256, 1), int(gridDim.x) * 2 / rows_tile_tiles + 1);
            const int most_beside = min(fit_in_l2_or_enough, others);
            const int groups = max(floor_div(others + most_beside - 1, most_beside), 1);
            const int side_by_side = max(floor_div(others + groups - 1, groups), 1);
            const int tiles = rows_tile_tiles * H * B;
            grid_wait();  // until the kernels in front have ended: tensors may be touched from here on
            launch_dependents();
            int tile = int(blockIdx.x);
            bool go = int(blockIdx.x) < tiles;
            const uint32_t next_smem = smem_base + next_offset;
            const uint32_t next_empty = smem_base + next_empty_offset;
            const uint32_t next_full = smem_base + next_full_offset;
            const uint32_t q_smem = smem_base + q_offset;
            const uint32_t q_empty = smem_base + q_empty_offset;
            const uint32_t q_full = smem_base + q_full_offset;
            const uint32_t k_smem = smem_base + k_offset;
            const uint32_t k_empty = smem_base + k_empty_offset;
            const uint32_t k_full = smem_base + k_full_offset;
            const uint32_t v_smem = smem_base + v_offset;
            const uint32_t v_empty = smem_base + v_empty_offset;
            const uint32_t v_full = smem_base + v_full_offset;
            while (go) {
                const int group_tiles = side_by_side * rows_tile_tiles;
                const int in_group = tile % group_tiles;
                const int group_first = tile / group_tiles * side_by_side;
                const int members = min(side_by_side, others - group_first);
                const int rows_tile = rows_tile_tiles - 1 - floor_div(in_group, members);
                const int beside = group_first + floor_mod(in_group, members);
                const int h = floor_mod(beside, H);
                const int b = floor_div(beside, H);
                mbar_wait(next_empty + next_slot * 8, next_parity ^ 1);
                post_i32(next_smem + next_slot * 128, 1);
                post_i32(next_smem + next_slot * 128 + 4, b);
                post_i32(next_smem + next_slot * 128 + 8, h);
                post_i32(next_smem + next_slot * 128 + 12, rows_tile);
                mbar_expect(next_full + next_slot * 8, 0);
                if (++next_slot == 2) { next_slot = 0; next_parity ^= 1; }
                // g = h // (Q.H // K.G)  [attention.py:105]
                const int g = floor_div(h, H / G);
                // q = fc.load(Q[b, h, rows])  [attention.py:106]
                mbar_wait(q_empty + q_slot * 8, q_parity ^ 1);
                mbar_expect(q_full + q_slot * 8, 32768);
                tma_load_4d(q_smem + q_slot * 32768, q_map, q_full + q_slot * 8, 0, rows_tile * 128, h, b);
                tma_load_4d(q_smem + q_slot * 32768 + 16384, q_map, q_full + q_slot * 8, 64, rows_tile * 128, h, b);
                if (++q_slot == 2) { q_slot = 0; q_parity ^= 1; }
                // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
                const int end = min((N + 127) / 128, rows_tile + 1);
                const int whole_to = max(min(end, min(N / 128, rows_tile)), 0);
                const bool some = 0 < end;
                int claimed;
                if (some) {
                    const int first = end - 1;
                    // k = fc.load(K[b, g, cols])  [attention.py:115]
                    mbar_wait(k_empty + k_slot * 8, k_parity ^ 1);
                    mbar_expect(k_full + k_slot * 8, 32768);
                    tma_load_4d(k_smem + k_slot * 32768, k_map, k_full + k_slot * 8, 0, first * 128, g, b);
                    tma_load_4d(k_smem + k_slot * 32768 + 16384, k_map, k_full + k_slot * 8, 64, first * 128, g, b);
                    if (++k_slot == 2) { k_slot = 0; k_parity ^= 1; }
                    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
                    const int cols_tile_from = min(whole_to, first);
                    // masked part of the range
                    #pragma unroll 1
                    for (int cols_tile = first - 1; cols_tile >= cols_tile_from; --cols_tile) {
                        // k = fc.load(K[b, g, cols])  [attention.py:115]
                        mbar_wait(k_empty + k_slot * 8, k_parity ^ 1);
                        mbar_expect(k_full + k_slot * 8, 32768);
                        tma_load_4d(k_smem + k_slot * 32768, k_map, k_full + k_slot * 8, 0, cols_tile * 128, g, b);
                        tma_load_4d(k_smem + k_slot * 32768 + 16384, k_map, k_full + k_slot * 8, 64, cols_tile * 128, g, b);
                        if (++k_slot == 2) { k_slot = 0; k_parity ^= 1; }
                        // v = fc.load(values)  [attention.py:65]
                        mbar_wait(v_empty + v_slot * 8, v_parity ^ 1);
                        mbar_expect(v_full + v_slot * 8, 32768);
                        tma_load_4d(v_smem + v_slot * 32768, v_map, v_full + v_slot * 8, 0, (cols_tile + 1) * 128, g, b);
                        tma_load_4d(v_smem + v_slot * 32768 + 16384, v_map, v_full + v_slot * 8, 64, (cols_tile + 1) * 128, g, b);
                        if (++v_slot == 2) { v_slot = 0; v_parity ^= 1; }
                    }
                    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
                    // full part of the range
                    #pragma unroll 1
                    for (int cols_tile_2 = cols_tile_from - 1; cols_tile_2 >= 0; --cols_tile_2) {
                        // k = fc.load(K[b, g, cols])  [attention.py:115]
                        mbar_wait(k_empty + k_slot * 8, k_parity ^ 1);
                        mbar_expect(k_full + k_slot * 8, 32768);
                        tma_load_4d(k_smem + k_slot * 32768, k_map, k_full + k_slot * 8, 0, cols_tile_2 * 128, g, b);
                        tma_load_4d(k_smem + k_slot * 32768 + 16384, k_map, k_full + k_slot * 8, 64, cols_tile_2 * 128, g, b);
                        if (++k_slot == 2) { k_slot = 0; k_parity ^= 1; }
                        // v = fc.load(values)  [attention.py:65]
                        mbar_wait(v_empty + v_slot * 8, v_parity ^ 1);
                        mbar_expect(v_full + v_slot * 8, 32768);
                        tma_load_4d(v_smem + v_slot * 32768, v_map, v_full + v_slot * 8, 0, (cols_tile_2 + 1) * 128, g, b);
                        tma_load_4d(v_smem + v_slot * 32768 + 16384, v_map, v_full + v_slot * 8, 64, (cols_tile_2 + 1) * 128, g, b);
                        if (++v_slot == 2) { v_slot = 0; v_parity ^= 1; }
                    }
                    const int claimed_2 = atomicAdd(counter, 1) + int(gridDim.x);
                    // v = fc.load(values)  [attention.py:65]
                    mbar_wait(v_empty + v_slot * 8, v_parity ^ 1);
                    mbar_expect(v_full + v_slot * 8, 32768);
                    tma_load_4d(v_smem + v_slot * 32768, v_map, v_full + v_slot * 8, 0, 0, g, b);
                    tma_load_4d(v_smem + v_slot * 32768 + 16384, v_map, v_full + v_slot * 8, 64, 0, g, b);
                    if (++v_slot == 2) { v_slot = 0; v_parity ^= 1; }
                    claimed = claimed_2;
                } else {
                    const int claimed_3 = atomicAdd(counter, 1) + int(gridDim.x);
                    claimed = claimed_3;
                }
                const bool more = claimed < tiles;
                go = more;
                tile = claimed;
            }
            mbar_wait(next_empty + next_slot * 8, next_parity ^ 1);
            post_i32(next_smem + next_slot * 128, 0);
            post_i32(next_smem + next_slot * 128 + 4, 0);
            post_i32(next_smem + next_slot * 128 + 8, 0);
            post_i32(next_smem + next_slot * 128 + 12, 0);
            mbar_expect(next_full + next_slot * 8, 0);
            // the last block to finish resets the counter for the next launch
            if (atomicAdd(counter + 1, 1) == int(gridDim.x) - 1) {
                counter[0] = 0;
                counter[1] = 0;
            }
        }
    } else {  // role main: 8 warps
        setmaxnreg_inc<232>();
        const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0) - 4;
        const int lane = threadIdx.x % 32;
        const uint32_t ones_smem = smem_base + ones_offset;
        uint32_t one[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            one[i] = pack_f16(1.0f, 1.0f);
        const uint32_t ones_lane = swizzle<0x70>(warp * 256 + lane % 16 * 16);
        const uint32_t ones_at = ones_smem + ones_lane;
        if (lane < 16) {
            st_shared_b32x4(ones_at, one);
        }
        proxy_fence();
        bar_sync(14, 256);
        int next_slot = 0;
        uint32_t next_parity = 0;
        int q_slot = 0;
        uint32_t q_parity = 0;
        int k_slot = 0;
        uint32_t k_parity = 0;
        int v_slot = 0;
        uint32_t v_parity = 0;
        if (warp / 4 == 1) bar_arrive(1, 256);
        const uint32_t next_smem = smem_base + next_offset;
        const uint32_t next_full = smem_base + next_full_offset;
        mbar_wait(next_full + next_slot * 8, next_parity);
        const int more_2 = fetch_i32(next_smem + next_slot * 128);
        const int b_2 = fetch_i32(next_smem + next_slot * 128 + 4);
        const int h_2 = fetch_i32(next_smem + next_slot * 128 + 8);
        const int rows_tile_2 = fetch_i32(next_smem + next_slot * 128 + 12);
        const uint32_t next_empty = smem_base + next_empty_offset;
        __syncwarp();
        if (lane == 0) mbar_arrive(next_empty + next_slot * 8);
        if (++next_slot == 2) { next_slot = 0; next_parity ^= 1; }
        grid_wait();  // until the kernels in front have ended: tensors may be touched from here on
        int b_3 = b_2;
        int h_3 = h_2;
        int rows_tile_3 = rows_tile_2;
        bool go_2 = more_2 != 0;
        const uint32_t q_smem = smem_base + q_offset;
        const uint32_t q_full = smem_base + q_full_offset;
        const uint32_t q_lane = swizzle<0x70>(warp * 2048 + lane / 16 * 16 + lane % 16 * 128);
        const uint32_t q_empty = smem_base + q_empty_offset;
        const uint32_t k_full = smem_base + k_full_offset;
        const uint32_t k_empty = smem_base + k_empty_offset;
        const uint32_t v_full = smem_base + v_full_offset;
        const uint32_t v_empty = smem_base + v_empty_offset;
        const int my_turn = 1 + warp / 4;
        const int next_turn = 1 + (warp / 4 + 1) % 2;
        const uint32_t k_smem = smem_base + k_offset;
        const uint64_t k_desc = smem_desc<1, 16, 1024>(k_smem);
        const int pos0 = warp * 16 + lane / 4;
        const int pos0_2 = lane % 4 * 2;
        const uint32_t v_smem = smem_base + v_offset;
        const uint64_t v_desc = smem_desc<1, 16384, 1024>(v_smem);
        const uint64_t v_ones_desc = smem_desc<1, 50176, 1024>(v_smem + 16384);
        const int o_col = lane % 4 * 8;
        f16* o_base = O + (long long)pos0 * O_s2 + o_col;
        while (go_2) {
            // b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))  [attention.py:104]
            const int rows_start = rows_tile_3 * 128;
            // q = fc.load(Q[b, h, rows])  [attention.py:106]
            mbar_wait(q_full + q_slot * 8, q_parity);
            uint32_t q[32];
            const uint32_t q_at = q_smem + q_slot * 32768 + q_lane;
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                ldmatrix_x4(&q[i * 4], (q_at ^ (i % 4 * 32)) + i / 4 * 16384);
            proxy_fence();
            __syncwarp();
            if (lane == 0) mbar_arrive(q_empty + q_slot * 8);
            if (++q_slot == 2) { q_slot = 0; q_parity ^= 1; }
            // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
            const int N_tiles = (N + 127) / 128;
            // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
            const float scale_log2e = scale * 1.442695f;
            // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
            const int unread_to = min(N_tiles, rows_tile_3 + 1);
            const int own_times_64 = warp / 4 * 64;
            const int N_tiles_cut = min(N_tiles, rows_tile_3 + floor_div(own_times_64 + 63, 128) + 1);
            const int N_over_128_cut = min(N / 128, rows_tile_3 + floor_div(own_times_64 + 1, 128));
            const int unread_from = max(own_times_64 + rows_start < M ? N_tiles_cut : 0, 0);
            const int whole_to_2 = max(min(unread_from, N_over_128_cut), 0);
            const bool some_2 = 0 < unread_from;
            #pragma unroll 1
            for (int unread = unread_from; unread < unread_to; ++unread) {
                mbar_wait(k_full + k_slot * 8, k_parity);
                __syncwarp();
                if (lane == 0) mbar_arrive(k_empty + k_slot * 8);
                if (++k_slot == 2) { k_slot = 0; k_parity ^= 1; }
                mbar_wait(v_full + v_slot * 8, v_parity);
                __syncwarp();
                if (lane == 0) mbar_arrive(v_empty + v_slot * 8);
                if (++v_slot == 2) { v_slot = 0; v_parity ^= 1; }
                bar_sync(my_turn, 256);
                bar_arrive(next_turn, 256);
            }
            float acc[68];
            if (some_2) {
                const int first_2 = unread_from - 1;
                const int cols_start = first_2 * 128;
                // s = fc.dot(q, k.T) * scale  [attention.py:116]
                mbar_wait(k_full + k_slot * 8, k_parity);
                float q_dot_k[64];
                touch_b32(q);
                wgmma_fence();
                wgmma_m64n128k16_f16_rs_x8_0_f_8130(q_dot_k, q, k_desc + uint32_t(k_slot * 2048));
                wgmma_commit();
                // return cols.valid & (cols.index <= rows.index)  [attention.py:27]
                int limit[2];
                #pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int x = pos0 + i * 8 + rows_start;
                    limit[i] = min(x + 1 - cols_start, N - cols_start);
                }
                wgmma_wait<0>();
                touch(q_dot_k);
                touch_b32(q);
                __syncwarp();
                if (lane == 0) mbar_arrive(k_empty + k_slot * 8);
                if (++k_slot == 2) { k_slot = 0; k_parity ^= 1; }
                // s = fc.where(seen, s, -fc.inf)  [attention.py:51]
                float s[64];
                #pragma unroll
                for (int i = 0; i < 64; ++i)
                    s[i] = i / 4 * 8 + i % 2 < limit[row_s(i)] - pos0_2 ? q_dot_k[i] : -INF;
                // best = fc.max(s, axis=1)  [attention.py:52]
                float best[2];
                #pragma unroll
                for (int j = 0; j < 2; ++j) {
                    float part[2];
                    #pragma unroll
                    for (int i = 0; i < 32; ++i) {
                        const int e = j * 2 + i / 2 * 4 + i % 2;
                        part[i % 2] = i < 2 ? s[e] : fmaxf(part[i % 2], s[e]);
                    }
                    best[j] = fmaxf(part[0], part[1]);
                }
                #pragma unroll
                for (int i = 0; i < 2; ++i) {
                    best[i] = fmaxf(best[i], shfl_xor_f32(best[i], 1));
                    best[i] = fmaxf(best[i], shfl_xor_f32(best[i], 2));
                }
                // m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))  [attention.py:39]
                // top = fc.maximum(m, best)  [attention.py:53]
                float top[2];
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    top[i] = fmaxf(-INF, best[i]);
                // m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))  [attention.py:39]
                // moved = top - m > lazy  [attention.py:54]
                bool moved[2];
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    moved[i] = (top[i] - -INF) * scale > 5.5f;
                // m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))  [attention.py:39]
                // top = fc.where(moved, top, m)  [attention.py:56]
                float top_2[2];
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    top_2[i] = moved[i] ? top[i] : -INF;
                // base = fc.where(top == -fc.inf, 0.0, top)  [attention.py:57]
                float base[2];
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    base[i] = top_2[i] == -INF ? 0.0f : top_2[i];
                // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                float base_times_scale_log2e[2];
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    base_times_scale_log2e[i] = base[i] * scale_log2e;
                bool any_far = false;
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    any_far |= fabsf(base_times_scale_log2e[i]) > 8192.0f;
                any_far = __any_sync(0xffffffffu, any_far);
                float tmp[2];
                if (any_far) {
                    bool far[2];
                    #pragma unroll
                    for (int i = 0; i < 2; ++i)
                        far[i] = fabsf(base_times_scale_log2e[i]) > 8192.0f;
                    float base_2[2];
                    #pragma unroll
                    for (int i = 0; i < 2; ++i)
                        base_2[i] = far[i] ? base[i] : 0.0f;
                    #pragma unroll
                    for (int i = 0; i < 2; ++i)
                        base_times_scale_log2e[i] = far[i] ? 0.0f : base_times_scale_log2e[i];
                    #pragma unroll
                    for (int i = 0; i < 64; ++i)
                        s[i] = s[i] - base_2[row_s(i)];
                    // m, l, acc = fc.var(fc.full(rows, -fc.inf)), fc.var(fc.zeros(rows)), fc.var(fc.zeros(rows, V.E))  [attention.py:39]
                    // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                    #pragma unroll
                    for (int i = 0; i < 2; ++i)
                        tmp[i] = -INF - base_2[i];
                } else {
                    #pragma unroll
                    for (int i = 0; i < 2; ++i)
                        tmp[i] = -INF;
                }
                // fade = fc.where(moved, fade, 1.0)  [attention.py:60]
                float fade[2];
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    fade[i] = moved[i] ? exp2_approx(tmp[i] * scale_log2e - base_times_scale_log2e[i]) : 1.0f;
                // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                // weights = p.to(self.dtype)  [attention.py:61]
                uint32_t weights[32];
                #pragma unroll
                for (int i = 0; i < 32; ++i) {
                    const float lo = exp2_approx(s[2 * i] * scale_log2e - base_times_scale_log2e[row_s(2 * i)]);
                    const float hi = exp2_approx(s[2 * i + 1] * scale_log2e - base_times_scale_log2e[row_s(2 * i + 1)]);
                    weights[i] = pack_f16(lo, hi);
                }
                // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
                const int cols_tile_from_2 = min(whole_to_2, first_2);
                // acc <<= acc * fade + fc.dot(weights, v)  [attention.py:68]
                // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
                #pragma unroll
                for (int i = 0; i < 68; ++i)
                    acc[i] = 0.0f * fade[row_acc(i)];
                // base = fc.where(top == -fc.inf, 0.0, top)  [attention.py:57]
                // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                float base_times_scale_log2e_2[2];
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    base_times_scale_log2e_2[i] = (top_2[i] == -INF ? 0.0f : top_2[i]) * scale_log2e;
                bool any_far_2 = false;
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    any_far_2 |= fabsf(base_times_scale_log2e_2[i]) > 8192.0f;
                any_far_2 = __any_sync(0xffffffffu, any_far_2);
                // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
                bool any_far_3 = any_far_2;
                // masked part of the range
                #pragma unroll 1
                for (int cols_tile_3 = first_2 - 1; cols_tile_3 >= cols_tile_from_2; --cols_tile_3) {
                    const int cols_start_2 = cols_tile_3 * 128;
                    // s = fc.dot(q, k.T) * scale  [attention.py:116]
                    mbar_wait(k_full + k_slot * 8, k_parity);
                    // acc <<= acc * fade + fc.dot(weights, v)  [attention.py:68]
                    mbar_wait(v_full + v_slot * 8, v_parity);
                    bar_sync(my_turn, 256);
                    // s = fc.dot(q, k.T) * scale  [attention.py:116]
                    float q_dot_k_2[64];
                    touch_b32(q);
                    wgmma_fence();
                    wgmma_m64n128k16_f16_rs_x8_0_f_8130(q_dot_k_2, q, k_desc + uint32_t(k_slot * 2048));
                    wgmma_commit();
                    // acc <<= acc * fade + fc.dot(weights, v)  [attention.py:68]
                    touch(acc);
                    touch_b32(weights);
                    wgmma_fence();
                    wgmma_m64n64k16_f16_rs_x8_1_t_4024(acc, weights, v_desc + uint32_t(v_slot * 2048));
                    wgmma_m64n72k16_f16_rs_x8_1_t_6526(&acc[32], weights, v_ones_desc - v_slot * (2048 * BESIDE));
                    wgmma_commit();
                    // return cols.valid & (cols.index <= rows.index)  [attention.py:27]
                    int limit_2[2];
                    #pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int x_2 = pos0 + i * 8 + rows_start;
                        limit_2[i] = min(x_2 + 1 - cols_start_2, N - cols_start_2);
                    }
                    wgmma_wait<1>();
                    touch(q_dot_k_2);
                    touch_b32(q);
                    __syncwarp();
                    if (lane == 0) mbar_arrive(k_empty + k_slot * 8);
                    if (++k_slot == 2) { k_slot = 0; k_parity ^= 1; }
                    bar_arrive(next_turn, 256);
                    // s = fc.where(seen, s, -fc.inf)  [attention.py:51]
                    float s_2[64];
                    #pragma unroll
                    for (int i = 0; i < 64; ++i)
                        s_2[i] = i / 4 * 8 + i % 2 < limit_2[row_s(i)] - pos0_2 ? q_dot_k_2[i] : -INF;
                    // moved = top - m > lazy  [attention.py:54]
                    int max_bits_s[2];
                    #pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        int part[2] = {0, 0};
                        #pragma unroll
                        for (int i = 0; i < 32; i += 4) {
                            part[0] = vmax3(part[0], __float_as_int(s_2[j * 2 + i / 2 * 4 + i % 2]), __float_as_int(s_2[j * 2 + (i + 1) / 2 * 4 + (i + 1) % 2]));
                            part[1] = vmax3(part[1], __float_as_int(s_2[j * 2 + (i + 2) / 2 * 4 + (i + 2) % 2]), __float_as_int(s_2[j * 2 + (i + 3) / 2 * 4 + (i + 3) % 2]));
                        }
                        max_bits_s[j] = max(part[0], part[1]);
                    }
                    bool any_moved = false;
                    #pragma unroll
                    for (int i = 0; i < 2; ++i)
                        any_moved |= max(max_bits_s[i], 0) > __float_as_int(top_2[i] + div_approx(5.5f, scale));
                    any_moved = __any_sync(0xffffffffu, any_moved);
                    wgmma_wait<0>();
                    touch(acc);
                    touch_b32(weights);
                    __syncwarp();
                    if (lane == 0) mbar_arrive(v_empty + v_slot * 8);
                    if (++v_slot == 2) { v_slot = 0; v_parity ^= 1; }
                    bool any_far_4;
                    if (any_moved) {
                        // best = fc.max(s, axis=1)  [attention.py:52]
                        float best_2[2];
                        #pragma unroll
                        for (int j = 0; j < 2; ++j) {
                            float part[2];
                            #pragma unroll
                            for (int i = 0; i < 32; ++i) {
                                const int e = j * 2 + i / 2 * 4 + i % 2;
                                part[i % 2] = i < 2 ? s_2[e] : fmaxf(part[i % 2], s_2[e]);
                            }
                            best_2[j] = fmaxf(part[0], part[1]);
                        }
                        #pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            best_2[i] = fmaxf(best_2[i], shfl_xor_f32(best_2[i], 1));
                            best_2[i] = fmaxf(best_2[i], shfl_xor_f32(best_2[i], 2));
                        }
                        // top = fc.maximum(m, best)  [attention.py:53]
                        float top_3[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            top_3[i] = fmaxf(top_2[i], best_2[i]);
                        // moved = top - m > lazy  [attention.py:54]
                        bool moved_2[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            moved_2[i] = (top_3[i] - top_2[i]) * scale > 5.5f;
                        // top = fc.where(moved, top, m)  [attention.py:56]
                        float top_4[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            top_4[i] = moved_2[i] ? top_3[i] : top_2[i];
                        // base = fc.where(top == -fc.inf, 0.0, top)  [attention.py:57]
                        // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                        // fade = fc.where(moved, fade, 1.0)  [attention.py:60]
                        float fade_2[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            const float base_3 = top_4[i] == -INF ? 0.0f : top_4[i];
                            const float base_times_scale_log2e_3 = base_3 * scale_log2e;
                            const bool far_2 = fabsf(base_times_scale_log2e_3) > 8192.0f;
                            fade_2[i] = moved_2[i] ? exp2_approx((top_2[i] - (far_2 ? base_3 : 0.0f)) * scale_log2e - (far_2 ? 0.0f : base_times_scale_log2e_3)) : 1.0f;
                        }
                        // acc <<= acc * fade + fc.dot(weights, v)  [attention.py:68]
                        #pragma unroll
                        for (int i = 0; i < 68; ++i)
                            acc[i] = acc[i] * fade_2[row_acc(i)];
                        // base = fc.where(top == -fc.inf, 0.0, top)  [attention.py:57]
                        // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            base_times_scale_log2e_2[i] = (top_4[i] == -INF ? 0.0f : top_4[i]) * scale_log2e;
                        bool any_far_5 = false;
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            any_far_5 |= fabsf(base_times_scale_log2e_2[i]) > 8192.0f;
                        any_far_5 = __any_sync(0xffffffffu, any_far_5);
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            top_2[i] = top_4[i];
                        any_far_4 = any_far_5;
                    } else {
                        any_far_4 = any_far_3;
                    }
                    float tmp_2[2];
                    if (any_far_4) {
                        bool far_3[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            far_3[i] = fabsf(base_times_scale_log2e_2[i]) > 8192.0f;
                        // base = fc.where(top == -fc.inf, 0.0, top)  [attention.py:57]
                        // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                        float base_4[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            base_4[i] = far_3[i] ? (top_2[i] == -INF ? 0.0f : top_2[i]) : 0.0f;
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            tmp_2[i] = far_3[i] ? 0.0f : base_times_scale_log2e_2[i];
                        #pragma unroll
                        for (int i = 0; i < 64; ++i)
                            s_2[i] = s_2[i] - base_4[row_s(i)];
                    } else {
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            tmp_2[i] = base_times_scale_log2e_2[i];
                    }
                    // weights = p.to(self.dtype)  [attention.py:61]
                    #pragma unroll
                    for (int i = 0; i < 32; ++i) {
                        const float lo_2 = exp2_approx(s_2[2 * i] * scale_log2e - tmp_2[row_s(2 * i)]);
                        const float hi_2 = exp2_approx(s_2[2 * i + 1] * scale_log2e - tmp_2[row_s(2 * i + 1)]);
                        weights[i] = pack_f16(lo_2, hi_2);
                    }
                    any_far_3 = any_far_4;
                }
                // base = fc.where(top == -fc.inf, 0.0, top)  [attention.py:57]
                // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                float base_times_scale_log2e_4[2];
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    base_times_scale_log2e_4[i] = (top_2[i] == -INF ? 0.0f : top_2[i]) * scale_log2e;
                bool any_far_6 = false;
                #pragma unroll
                for (int i = 0; i < 2; ++i)
                    any_far_6 |= fabsf(base_times_scale_log2e_4[i]) > 8192.0f;
                any_far_6 = __any_sync(0xffffffffu, any_far_6);
                // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
                bool any_far_7 = any_far_6;
                // full part of the range
                #pragma unroll 1
                for (int cols_tile_4 = cols_tile_from_2 - 1; cols_tile_4 >= 0; --cols_tile_4) {
                    // s = fc.dot(q, k.T) * scale  [attention.py:116]
                    mbar_wait(k_full + k_slot * 8, k_parity);
                    // acc <<= acc * fade + fc.dot(weights, v)  [attention.py:68]
                    mbar_wait(v_full + v_slot * 8, v_parity);
                    bar_sync(my_turn, 256);
                    // s = fc.dot(q, k.T) * scale  [attention.py:116]
                    float q_dot_k_3[64];
                    touch_b32(q);
                    wgmma_fence();
                    wgmma_m64n128k16_f16_rs_x8_0_f_8130(q_dot_k_3, q, k_desc + uint32_t(k_slot * 2048));
                    wgmma_commit();
                    // acc <<= acc * fade + fc.dot(weights, v)  [attention.py:68]
                    touch(acc);
                    touch_b32(weights);
                    wgmma_fence();
                    wgmma_m64n64k16_f16_rs_x8_1_t_4024(acc, weights, v_desc + uint32_t(v_slot * 2048));
                    wgmma_m64n72k16_f16_rs_x8_1_t_6526(&acc[32], weights, v_ones_desc - v_slot * (2048 * BESIDE));
                    wgmma_commit();
                    wgmma_wait<1>();
                    touch(q_dot_k_3);
                    touch_b32(q);
                    __syncwarp();
                    if (lane == 0) mbar_arrive(k_empty + k_slot * 8);
                    if (++k_slot == 2) { k_slot = 0; k_parity ^= 1; }
                    bar_arrive(next_turn, 256);
                    // moved = top - m > lazy  [attention.py:54]
                    int tmp_3[2];
                    #pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        int part[2] = {0, 0};
                        #pragma unroll
                        for (int i = 0; i < 32; i += 4) {
                            part[0] = vmax3(part[0], __float_as_int(q_dot_k_3[j * 2 + i / 2 * 4 + i % 2]), __float_as_int(q_dot_k_3[j * 2 + (i + 1) / 2 * 4 + (i + 1) % 2]));
                            part[1] = vmax3(part[1], __float_as_int(q_dot_k_3[j * 2 + (i + 2) / 2 * 4 + (i + 2) % 2]), __float_as_int(q_dot_k_3[j * 2 + (i + 3) / 2 * 4 + (i + 3) % 2]));
                        }
                        tmp_3[j] = max(part[0], part[1]);
                    }
                    bool any_moved_2 = false;
                    #pragma unroll
                    for (int i = 0; i < 2; ++i)
                        any_moved_2 |= max(tmp_3[i], 0) > __float_as_int(top_2[i] + div_approx(5.5f, scale));
                    any_moved_2 = __any_sync(0xffffffffu, any_moved_2);
                    wgmma_wait<0>();
                    touch(acc);
                    touch_b32(weights);
                    __syncwarp();
                    if (lane == 0) mbar_arrive(v_empty + v_slot * 8);
                    if (++v_slot == 2) { v_slot = 0; v_parity ^= 1; }
                    bool any_far_8;
                    if (any_moved_2) {
                        // best = fc.max(s, axis=1)  [attention.py:52]
                        float best_3[2];
                        #pragma unroll
                        for (int j = 0; j < 2; ++j) {
                            float part[2];
                            #pragma unroll
                            for (int i = 0; i < 32; ++i) {
                                const int e = j * 2 + i / 2 * 4 + i % 2;
                                part[i % 2] = i < 2 ? q_dot_k_3[e] : fmaxf(part[i % 2], q_dot_k_3[e]);
                            }
                            best_3[j] = fmaxf(part[0], part[1]);
                        }
                        #pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            best_3[i] = fmaxf(best_3[i], shfl_xor_f32(best_3[i], 1));
                            best_3[i] = fmaxf(best_3[i], shfl_xor_f32(best_3[i], 2));
                        }
                        // top = fc.maximum(m, best)  [attention.py:53]
                        float top_5[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            top_5[i] = fmaxf(top_2[i], best_3[i]);
                        // moved = top - m > lazy  [attention.py:54]
                        bool moved_3[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            moved_3[i] = (top_5[i] - top_2[i]) * scale > 5.5f;
                        // top = fc.where(moved, top, m)  [attention.py:56]
                        float top_6[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            top_6[i] = moved_3[i] ? top_5[i] : top_2[i];
                        // base = fc.where(top == -fc.inf, 0.0, top)  [attention.py:57]
                        // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                        // fade = fc.where(moved, fade, 1.0)  [attention.py:60]
                        float fade_3[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            const float base_5 = top_6[i] == -INF ? 0.0f : top_6[i];
                            const float base_times_scale_log2e_5 = base_5 * scale_log2e;
                            const bool far_4 = fabsf(base_times_scale_log2e_5) > 8192.0f;
                            fade_3[i] = moved_3[i] ? exp2_approx((top_2[i] - (far_4 ? base_5 : 0.0f)) * scale_log2e - (far_4 ? 0.0f : base_times_scale_log2e_5)) : 1.0f;
                        }
                        // acc <<= acc * fade + fc.dot(weights, v)  [attention.py:68]
                        #pragma unroll
                        for (int i = 0; i < 68; ++i)
                            acc[i] = acc[i] * fade_3[row_acc(i)];
                        // base = fc.where(top == -fc.inf, 0.0, top)  [attention.py:57]
                        // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            base_times_scale_log2e_4[i] = (top_6[i] == -INF ? 0.0f : top_6[i]) * scale_log2e;
                        bool any_far_9 = false;
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            any_far_9 |= fabsf(base_times_scale_log2e_4[i]) > 8192.0f;
                        any_far_9 = __any_sync(0xffffffffu, any_far_9);
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            top_2[i] = top_6[i];
                        any_far_8 = any_far_9;
                    } else {
                        any_far_8 = any_far_7;
                    }
                    float tmp_4[2];
                    if (any_far_8) {
                        bool far_5[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            far_5[i] = fabsf(base_times_scale_log2e_4[i]) > 8192.0f;
                        // base = fc.where(top == -fc.inf, 0.0, top)  [attention.py:57]
                        // p, fade = fc.exp(s - base), fc.exp(m - base)  [attention.py:58]
                        float base_6[2];
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            base_6[i] = far_5[i] ? (top_2[i] == -INF ? 0.0f : top_2[i]) : 0.0f;
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            tmp_4[i] = far_5[i] ? 0.0f : base_times_scale_log2e_4[i];
                        #pragma unroll
                        for (int i = 0; i < 64; ++i)
                            q_dot_k_3[i] = q_dot_k_3[i] - base_6[row_s(i)];
                    } else {
                        #pragma unroll
                        for (int i = 0; i < 2; ++i)
                            tmp_4[i] = base_times_scale_log2e_4[i];
                    }
                    // weights = p.to(self.dtype)  [attention.py:61]
                    #pragma unroll
                    for (int i = 0; i < 32; ++i) {
                        const float lo_3 = exp2_approx(q_dot_k_3[2 * i] * scale_log2e - tmp_4[row_s(2 * i)]);
                        const float hi_3 = exp2_approx(q_dot_k_3[2 * i + 1] * scale_log2e - tmp_4[row_s(2 * i + 1)]);
                        weights[i] = pack_f16(lo_3, hi_3);
                    }
                    any_far_7 = any_far_8;
                }
                // acc <<= acc * fade + fc.dot(weights, v)  [attention.py:68]
                mbar_wait(v_full + v_slot * 8, v_parity);
                bar_sync(my_turn, 256);
                touch(acc);
                touch_b32(weights);
                wgmma_fence();
                wgmma_m64n64k16_f16_rs_x8_1_t_4024(acc, weights, v_desc + uint32_t(v_slot * 2048));
                wgmma_m64n72k16_f16_rs_x8_1_t_6526(&acc[32], weights, v_ones_desc - v_slot * (2048 * BESIDE));
                wgmma_commit();
                wgmma_wait<0>();
                touch(acc);
                touch_b32(weights);
                __syncwarp();
                if (lane == 0) mbar_arrive(v_empty + v_slot * 8);
                if (++v_slot == 2) { v_slot = 0; v_parity ^= 1; }
                bar_arrive(next_turn, 256);
            } else {
                #pragma unroll
                for (int i = 0; i < 68; ++i)
                    acc[i] = 0.0f;
            }
            // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=live):  [attention.py:121]
            float l[2];
            #pragma unroll
            for (int j = 0; j < 2; ++j) {
                #pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int e = j * 2 + i;
                    l[j] = i < 1 ? acc[e + 64] : fmaxf(l[j], acc[e + 64]);
                }
            }
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                l[i] = fmaxf(l[i], shfl_xor_f32(l[i], 1));
                l[i] = fmaxf(l[i], shfl_xor_f32(l[i], 2));
            }
            // return fc.where(l == 0.0, 0.0, acc / divisor)  [attention.py:92]
            bool l_is_0[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                l_is_0[i] = l[i] == 0.0f;
            float rcp_l[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                rcp_l[i] = rcp_approx(l[i]);
            // fc.store(O[b, h, rows], state.out().to(O.dtype))  [attention.py:125]
            uint32_t v0[32];
            #pragma unroll
            for (int i = 0; i < 32; ++i) {
                const float lo_4 = l_is_0[row_s(2 * i)] ? 0.0f : acc[2 * i] * rcp_l[row_s(2 * i)];
                const float hi_4 = l_is_0[row_s(2 * i + 1)] ? 0.0f : acc[2 * i + 1] * rcp_l[row_s(2 * i + 1)];
                v0[i] = pack_f16(lo_4, hi_4);
            }
            uint32_t o_out[32];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                o_out[i * 4] = v0[i / 2 * 8 + i % 2];
                o_out[i * 4 + 1] = v0[i / 2 * 8 + i % 2 + 2];
                o_out[i * 4 + 2] = v0[i / 2 * 8 + i % 2 + 4];
                o_out[i * 4 + 3] = v0[i / 2 * 8 + i % 2 + 6];
                quad_transpose(&o_out[i * 4], lane);
            }
            f16* o_ptr = o_base + (long long)b_3 * O_s0 + (long long)h_3 * O_s1 + (long long)rows_start * O_s2;
            const int o_pos = rows_start + pos0;
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                if (o_pos + i % 2 * 8 < M) st_global_b32x4(o_ptr + (long long)(i % 2 * 8) * O_s2 + i / 2 * 32, &o_out[i * 4]);
            mbar_wait(next_full + next_slot * 8, next_parity);
            const int more_3 = fetch_i32(next_smem + next_slot * 128);
            const int b_4 = fetch_i32(next_smem + next_slot * 128 + 4);
            const int h_4 = fetch_i32(next_smem + next_slot * 128 + 8);
            const int rows_tile_4 = fetch_i32(next_smem + next_slot * 128 + 12);
            __syncwarp();
            if (lane == 0) mbar_arrive(next_empty + next_slot * 8);
            if (++next_slot == 2) { next_slot = 0; next_parity ^= 1; }
            const bool go_on = more_3 != 0;
            go_2 = go_on;
            b_3 = b_4;
            h_3 = h_4;
            rows_tile_3 = rows_tile_4;
        }
    }
}
