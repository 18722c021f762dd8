/*
 * Matmuls of steps of more than 16 rows that are still few: a block takes one tile of 16 rows of W and 24 or 32 rows of x;
 * blockIdx.z says which. The sums are decode_matmul.cu's to the bit. So many rows of x need the registers and the caches that
 * rings in shared memory would take, so weights go from memory to registers, UNROLL chunks of a warp in flight.
 */
#include "backend/cuda/kern/decode_matmul.cuh"

/* Shared memory: warps * COLUMNS * 16 floats. A warp is a leaf. */
template <int ACT, bool INT8, int COLUMNS> DEVICE void matmul(const decode_matmul_args &a) {
    using tile_t = tile<ACT, INT8, COLUMNS, false>;
    constexpr int UNROLL = 4, X_UNROLL = INT8 ? 1 : 2; /* chunks in flight, of W and of x: what registers allow */
    extern __shared__ __align__(16) float matmul_room[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int leaf = blockIdx.y * (blockDim.x / 32) + warp, first_m = blockIdx.z * COLUMNS;
    let_next_kernel_start();

    const place<false> where = share<false>(a, 0, 1).tile(a, blockIdx.x);
    const matrix_row low_row = where.lane_row(a, 0, g), high_row = where.lane_row(a, 1, g);
    const decode_matrix &low = a.matrix[low_row.matrix], &high = a.matrix[high_row.matrix];
    const int64_t row_bytes = (int64_t)a.k * tile_t::W_BYTES;
    const char *w_low = static_cast<const char *>(low.w) + low_row.row * row_bytes;
    const char *w_high = static_cast<const char *>(high.w) + high_row.row * row_bytes;
    tile_t s;
    s.x_stride = (int64_t)a.k * tile_t::X_BYTES;
    s.x = static_cast<const char *>(a.x) + first_m * s.x_stride;
    const int begin = a.border[leaf];
    s.end = a.border[leaf + 1];
    s.unit_k = begin + t * tile_t::UNIT;
    const int n_chunks = (s.end - begin + tile_t::CHUNK - 1) / tile_t::CHUNK;
#pragma unroll
    for (int i = 0; i < (int)(sizeof s.acc / sizeof *s.acc); i++) {
        s.acc[i] = 0.0F;
    }

    uint4 l[UNROLL], h[UNROLL], b[X_UNROLL][tile_t::TILES][tile_t::X_LOADS];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const int at = s.unit_k + u * tile_t::CHUNK;
        l[u] = load_weight(w_low + (int64_t)at * tile_t::W_BYTES, at < s.end);
        h[u] = load_weight(w_high + (int64_t)at * tile_t::W_BYTES, at < s.end);
    }
    float scale_low = 0.0F, scale_high = 0.0F;
    if (INT8) {
        scale_low = low.scale[(int64_t)low_row.row * a.n_leaves + leaf];
        scale_high = high.scale[(int64_t)high_row.row * a.n_leaves + leaf];
    }
    s.n_rows = min(COLUMNS, (a.kind == DECODE_HEAD ? a.step->n_out : a.step->n_rows) - first_m);
    wait_for_earlier_kernels();
#pragma unroll
    for (int u = 0; u < X_UNROLL; u++) {
        s.load_x(b[u], g, s.unit_k + u * tile_t::CHUNK);
    }
    for (int chunk = 0; chunk < n_chunks; chunk += UNROLL) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (chunk + u < n_chunks) {
                s.add_mma(l[u], h[u], b[u % X_UNROLL]);
                s.load_x(b[u % X_UNROLL], g, s.unit_k + (chunk + u + X_UNROLL) * tile_t::CHUNK);
                const int at = s.unit_k + (chunk + u + UNROLL) * tile_t::CHUNK;
                l[u] = load_weight(w_low + (int64_t)at * tile_t::W_BYTES, at < s.end);
                h[u] = load_weight(w_high + (int64_t)at * tile_t::W_BYTES, at < s.end);
            }
        }
    }
    leave(s, matmul_room + warp * COLUMNS * DECODE_TILE, g, t, scale_low, scale_high);
    __syncthreads();
    finish<ACT, COLUMNS>(a, where, matmul_room, first_m, s.n_rows, blockDim.x / 32, threadIdx.x);
}

/* Names: dtype of x, of W where it differs; the most rows. */
#define DEFINE_WIDE(name, act, int8, columns)                                                                          \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                               \
        decode_matmul_##name##_##columns(const __grid_constant__ decode_matmul_args a) {                               \
        matmul<act, int8, columns>(a);                                                                                 \
    }
#define DEFINE_WIDES(name, act, int8) DEFINE_WIDE(name, act, int8, 24) DEFINE_WIDE(name, act, int8, 32)

DEFINE_WIDES(bf16, KERN_BF16, false)
DEFINE_WIDES(f16, KERN_F16, false)
DEFINE_WIDES(int8_bf16, KERN_BF16, true)
DEFINE_WIDES(int8_f16, KERN_F16, true)
