// Negative controls: kernels that are right, and wrong in one way each by `bug`, for the checks that must find it.
//
//     1 waits for one cp.async group too few     5 a shuffle with the full mask in a divergent branch
//     2 no barrier after the wait                6 an accumulation across blocks without atomics
//     3 no barrier before a buffer is refilled   7 no column mask on a load
//     4 no column mask on a store                8 a wrong swizzle in an ldmatrix address
//     9 shared memory read that nothing wrote   10 a misaligned cp.async   11 no swizzle: right, with bank conflicts
#include "common/device.cuh"

namespace rdk::gpu {

struct Sizes {
  int m, n, k;
};

// Of 16 bytes from element `column` on, those inside a row of `columns`; none where the row is outside.
template <class T>
RDK_DEVICE int bytes_inside(bool row_inside, int column, int columns) {
  const int left = (columns - column) * int(sizeof(T));
  return row_inside ? min(max(left, 0), 16) : 0;
}

// C = A B and row_sum += its rows' sums, fp32, tiles in two buffers; N and K multiples of 4.
constexpr int kTileM = 32, kTileN = 32, kTileK = 16, kBuffer = kTileM * kTileK + kTileK * kTileN;
__global__ void __launch_bounds__(256) sgemm(const float* __restrict__ a, const float* __restrict__ b,
                                             float* __restrict__ c, float* __restrict__ row_sum, Sizes size, int bug) {
  RDK_DYN_SMEM(float, smem);  // [2][kBuffer]
  const int tid = int(threadIdx.x), tx = tid % 16, ty = tid / 16;
  const int m0 = int(blockIdx.y) * kTileM, n0 = int(blockIdx.x) * kTileN;

  const auto load = [&](int tile) {
    float* to_a = smem + tile % 2 * kBuffer;  // [kTileM][kTileK]
    float* to_b = to_a + kTileM * kTileK;     // [kTileK][kTileN]
    const int k0 = tile * kTileK;
    for (int i = tid; i < kTileM * kTileK / 4; i += 256) {
      const int row = i / (kTileK / 4), col = i % (kTileK / 4) * 4;
      const int bytes = bytes_inside<float>(m0 + row < size.m, k0 + col, size.k);
      if (bug == 9 && !bytes) continue;
      cp_async16(to_a + row * kTileK + col + (bug == 10), bytes ? a + (m0 + row) * size.k + k0 + col : a, bytes);
    }
    for (int i = tid; i < kTileK * kTileN / 4; i += 256) {
      const int row = i / (kTileN / 4), col = i % (kTileN / 4) * 4;
      const int columns = bug == 7 ? n0 + kTileN : size.n;
      const int bytes = bytes_inside<float>(k0 + row < size.k, n0 + col, columns);
      cp_async16(to_b + row * kTileN + col, bytes ? b + (k0 + row) * size.n + n0 + col : b, bytes);
    }
    cp_async_commit();
  };

  float acc[2][2] = {};
  const int tiles = (size.k + kTileK - 1) / kTileK;
  load(0);
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      load(tile + 1);
      bug == 1 ? cp_async_wait<2>() : cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    if (bug != 2) __syncthreads();
    const float* at_a = smem + tile % 2 * kBuffer;
    const float* at_b = at_a + kTileM * kTileK;
    for (int k = 0; k < kTileK; ++k) {
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) acc[i][j] += at_a[(ty * 2 + i) * kTileK + k] * at_b[k * kTileN + tx * 2 + j];
      }
    }
    if (bug != 3) __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    const int row = m0 + ty * 2 + i;
    float sum = 0;
    for (int j = 0; j < 2; ++j) {
      const int col = n0 + tx * 2 + j;
      if (row < size.m && (col < size.n || bug == 4)) c[row * size.n + col] = acc[i][j], sum += acc[i][j];
    }
    if (bug != 5 || tx < 8) {
      for (int by = 8; by; by /= 2) sum += __shfl_down_sync(0xffffffffu, sum, by, 16);
    }
    if (tx == 0 && row < size.m) bug == 6 ? void(row_sum[row] += sum) : void(atomicAdd(&row_sum[row], sum));
  }
}

// C = A B in fp32 by tensor cores: A [M, K]; B as [N, K], or as [K, N] with `kTrans`. Rows of a tile are 128 bytes, the
// 16-byte chunks of row r permuted by r % 8; rows in memory start at multiples of 16 bytes.
template <class T, bool kTrans>
__global__ void __launch_bounds__(128)
    tgemm(const T* __restrict__ a, const T* __restrict__ b, float* __restrict__ c, Sizes size, int bug) {
  constexpr int kChunk = 16 / sizeof(T), kRow = 8 * kChunk, kDepth = 2 * kChunk;  // kDepth: of one mma
  static_assert(!kTrans || sizeof(T) == 2);
  RDK_SHARED(T, tile_a, 64 * kRow);  // [64 rows][kRow of K]
  RDK_SHARED(T, tile_b, 64 * kRow);  // [64 of N][kRow of K], transposed [kRow of K][64 of N]
  const int tid = int(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int m0 = int(blockIdx.y) * 64, n0 = int(blockIdx.x) * 64;

  const auto load = [&](T* tile, const T* from, int row0, int rows, int col0, int cols) {
    for (int i = tid; i < 64 * 8; i += 128) {
      const int row = i / 8, chunk = i % 8, col = col0 + chunk * kChunk;
      const int bytes = bytes_inside<T>(row0 + row < rows, col, bug == 7 ? col0 + kRow : cols);
      if (bug == 9 && !bytes) continue;
      const int at = row * kRow + (bug == 11 ? chunk : chunk ^ row % 8) * kChunk;
      cp_async16(tile + at + (bug == 10), bytes ? from + (row0 + row) * cols + col : from, bytes);
    }
  };
  const auto chunk_at = [&](const T* tile, int row, int chunk) {
    const int place = bug == 11 ? chunk : bug == 8 ? chunk ^ row % 4 : chunk ^ row % 8;
    return tile + row * kRow + place * kChunk;
  };

  float acc[8][4] = {};  // [n / 8][fragment]
  for (int k0 = 0; k0 < size.k; k0 += kRow) {
    load(tile_a, a, m0, size.m, k0, size.k);
    kTrans ? load(tile_b, b, k0, size.k, n0, size.n) : load(tile_b, b, n0, size.n, k0, size.k);
    cp_async_commit();
    if (bug != 1) cp_async_wait<0>();
    if (bug != 2) __syncthreads();
    for (int k = 0; k < kRow; k += kDepth) {
      uint32_t fa[4];
      ldmatrix_x4(fa, chunk_at(tile_a, warp * 16 + lane % 16, k / kChunk + lane / 16));
      for (int j = 0; j < 8; j += 2) {
        uint32_t fb[4];  // two fragments
        if constexpr (kTrans) {
          ldmatrix_x4_trans(fb, chunk_at(tile_b, k + lane % 16, j + lane / 16));
        } else {
          ldmatrix_x4(fb, chunk_at(tile_b, j * 8 + lane % 8 + lane / 16 * 8, k / kChunk + lane / 8 % 2));
        }
        mma<T>(acc[j], fa, {fb[0], fb[1]});
        mma<T>(acc[j + 1], fa, {fb[2], fb[3]});
      }
    }
    if (bug != 3) __syncthreads();
  }
  cp_async_wait<0>();
  for (int j = 0; j < 8; ++j) {
    for (int e = 0; e < 4; ++e) {
      const int row = m0 + warp * 16 + lane / 4 + e / 2 * 8, col = n0 + j * 8 + lane % 4 * 2 + e % 2;
      if (row < size.m && (col < size.n || bug == 4)) c[row * size.n + col] = acc[j][e];
    }
  }
}

// One instruction on one warp: registers by lane.
template <class T>
__global__ void mma_probe(const uint32_t* a, const uint32_t* b, float* d) {
  uint32_t fa[4], fb[2];
  float fd[4];
  for (int q = 0; q < 4; ++q) fa[q] = a[threadIdx.x * 4 + q], fd[q] = d[threadIdx.x * 4 + q];
  for (int q = 0; q < 2; ++q) fb[q] = b[threadIdx.x * 2 + q];
  mma<T>(fd, fa, fb);
  for (int q = 0; q < 4; ++q) d[threadIdx.x * 4 + q] = fd[q];
}
template <bool kTrans>
__global__ void ldmatrix_probe(const uint4* rows, uint32_t* out) {
  RDK_SHARED(uint4, tile, 32);
  tile[threadIdx.x] = rows[threadIdx.x];
  __syncwarp();
  uint32_t r[4];
  kTrans ? ldmatrix_x4_trans(r, &tile[threadIdx.x]) : ldmatrix_x4(r, &tile[threadIdx.x]);
  for (int q = 0; q < 4; ++q) out[threadIdx.x * 4 + q] = r[q];
}

inline dim3 tiles(const Sizes& s, int m, int n) { return dim3(unsigned(s.n + n - 1) / n, unsigned(s.m + m - 1) / m); }

void run_sgemm(const float* a, const float* b, float* c, float* row_sum, Sizes size, int bug, cudaStream_t stream) {
  RDK_LAUNCH((sgemm), tiles(size, kTileM, kTileN), dim3(256), 2 * kBuffer * sizeof(float), stream, a, b, c, row_sum,
             size, bug);
}
template <class T, bool kTrans>
void run_tgemm(const T* a, const T* b, float* c, Sizes size, int bug, cudaStream_t stream) {
  RDK_LAUNCH((tgemm<T, kTrans>), tiles(size, 64, 64), dim3(128), 0, stream, a, b, c, size, bug);
}
template <class T>
void run_mma_probe(const uint32_t* a, const uint32_t* b, float* d, cudaStream_t stream) {
  RDK_LAUNCH((mma_probe<T>), dim3(1), dim3(32), 0, stream, a, b, d);
}
template <bool kTrans>
void run_ldmatrix_probe(const uint4* rows, uint32_t* out, cudaStream_t stream) {
  RDK_LAUNCH((ldmatrix_probe<kTrans>), dim3(1), dim3(32), 0, stream, rows, out);
}
template void run_tgemm<Half, false>(const Half*, const Half*, float*, Sizes, int, cudaStream_t);
template void run_tgemm<Half, true>(const Half*, const Half*, float*, Sizes, int, cudaStream_t);
template void run_tgemm<BFloat16, false>(const BFloat16*, const BFloat16*, float*, Sizes, int, cudaStream_t);
template void run_tgemm<BFloat16, true>(const BFloat16*, const BFloat16*, float*, Sizes, int, cudaStream_t);
template void run_tgemm<float, false>(const float*, const float*, float*, Sizes, int, cudaStream_t);
template void run_mma_probe<Half>(const uint32_t*, const uint32_t*, float*, cudaStream_t);
template void run_mma_probe<BFloat16>(const uint32_t*, const uint32_t*, float*, cudaStream_t);
template void run_mma_probe<float>(const uint32_t*, const uint32_t*, float*, cudaStream_t);
template void run_ldmatrix_probe<false>(const uint4*, uint32_t*, cudaStream_t);
template void run_ldmatrix_probe<true>(const uint4*, uint32_t*, cudaStream_t);

}  // namespace rdk::gpu
