/*
 * Drawing tokens on the device: the best logit, or Gumbel-max over the whole vocabulary. Definitions in ops.h (op_sample);
 * the same noise as backend/sample_math.h.
 *
 * A row is cut into gridDim.x slices; the block that finishes last merges their offers. The best value wins, the lowest id
 * at a tie, so that neither slices nor their order decide anything.
 */
#include "backend/cuda/kern/decode_sample.cuh"

/* The best of all threads, on all threads. `room`: one for each warp. Ends with a barrier to come before room's next use. */
DEVICE offer block_best(offer mine, offer *room) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        offer other;
        other.value = __shfl_xor_sync(0xffffffffu, mine.value, lanes);
        other.id = __shfl_xor_sync(0xffffffffu, mine.id, lanes);
        mine = better(mine, other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        room[threadIdx.x / 32] = mine;
    }
    __syncthreads();
    offer best = room[0];
    for (int i = 1; i < DECODE_SAMPLE_THREADS / 32; i++) {
        best = better(best, room[i]);
    }
    return best;
}

/* Ids [first, last) of a row, those of this thread; they rise, so that the first of equals stays. */
DEVICE offer best_logit(const float *logits, float temperature, int first, int last) {
    float best = -INFINITY;
    int32_t id = -1;
    for (int i = first + threadIdx.x; i < last; i += blockDim.x) {
        const float z = temperature == 0.0F ? logits[i] : logits[i] / temperature;
        if (z > best) {
            best = z;
            id = i;
        }
    }
    return offer{(double)best, id};
}

/* The Gumbel winner; `floor_value`: something that a winner reaches. */
DEVICE offer draw(const float *logits, const cuda_draw &how, int vocab_first, int first, int last, double floor_value) {
    offer best = {-INFINITY, -1};
    for (int i = first + threadIdx.x; i < last; i += blockDim.x) {
        const double z = (double)(logits[i] / how.temperature);
        if (!(z > -INFINITY) || z + GUMBEL_MAX < floor_value) {
            continue;
        }
        const uint32_t x = philox(how.seed, (uint32_t)(vocab_first + i), (uint32_t)how.position, how.choice);
        if (z + gumbel_bound(x) < floor_value) {
            continue;
        }
        const double value = z + gumbel_of(x);
        if (value > best.value) {
            best.value = value;
            best.id = i;
            floor_value = value > floor_value ? value : floor_value;
        }
    }
    return best;
}

extern "C" __global__ void __launch_bounds__(DECODE_SAMPLE_THREADS)
    decode_sample(const __grid_constant__ decode_sample_args a) {
    __shared__ offer room[DECODE_SAMPLE_THREADS / 32];
    __shared__ uint32_t is_last;
    const int row = blockIdx.y;
    let_next_kernel_start();
    wait_for_earlier_kernels();
    if (row >= a.step->n_out) {
        return;
    }
    const cuda_draw how = step_array<cuda_draw>(a.step, a.step->draw)[row];
    if (how.on_host) {
        if (blockIdx.x == 0 && threadIdx.x == 0) {
            a.drawn[row] = -1;
        }
        return;
    }
    const int slice = (a.n_vocab + gridDim.x - 1) / gridDim.x;
    const int first = blockIdx.x * slice, last = min(first + slice, a.n_vocab);
    const float *logits = a.logits + (int64_t)row * a.n_vocab;
    offer best = block_best(best_logit(logits, how.temperature, first, last), room);
    if (how.temperature != 0.0F && best.id >= 0) {
        /* Something close to the winner; it is met again in its turn. */
        const uint32_t x = philox(how.seed, (uint32_t)(a.vocab_first + best.id), (uint32_t)how.position, how.choice);
        best = block_best(draw(logits, how, a.vocab_first, first, last, best.value + gumbel_of(x)), room);
    }
    decode_sample_part *part = a.part + (int64_t)row * gridDim.x;
    if (threadIdx.x == 0) {
        part[blockIdx.x].value = best.value;
        part[blockIdx.x].id = best.id;
        __threadfence();
        is_last = atomicAdd(&a.counter[row], 1) == gridDim.x - 1;
        if (is_last) {
            a.counter[row] = 0;
        }
        __threadfence();
    }
    __syncthreads();
    if (!is_last) {
        return;
    }
    offer mine = {-INFINITY, -1};
    for (int i = threadIdx.x; i < (int)gridDim.x; i += blockDim.x) {
        const offer next = {__ldcg(&part[i].value), __ldcg(&part[i].id)};
        mine = better(mine, next);
    }
    mine = block_best(mine, room);
    if (threadIdx.x == 0) {
        a.drawn[row] = mine.id < 0 ? -1 : a.vocab_first + mine.id;
    }
}
