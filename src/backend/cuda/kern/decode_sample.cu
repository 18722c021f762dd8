/*
 * Drawing tokens on the device: the best logit, or Gumbel-max over the whole vocabulary or what filters leave of it.
 * Definitions in ops.h (op_sample); the same noise as backend/sample_math.h.
 *
 * A row is cut into gridDim.x slices; the block that finishes last merges their offers. The best value wins, the lowest id
 * at a tie, so that neither slices nor their order decide anything. Filters are seen to by that last block: decode_filter.cuh.
 */
#include "backend/cuda/kern/decode_filter.cuh"

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

/* What the block that finishes the row wants to know of this slice, beside the draw. best: in best_room, of each warp; by the
 * whole block, which reads it no more. */
DEVICE void tell_filter(const float *logits, const cuda_draw &how, int first, int last, float max, bool listed,
                        decode_sample_part *part, const offer *best_room, filter_room &room) {
    if (threadIdx.x < SAMPLE_WARPS) {
        const offer best = best_room[threadIdx.x];
        part->best[threadIdx.x] = best.id < 0 ? 0 : key_of((float)best.value, best.id);
        __threadfence();
    }
    float sum = 0.0F;
    for (int i = first + threadIdx.x; i < last && !listed; i += DECODE_SAMPLE_THREADS) {
        const float z = logits[i] / how.temperature;
        sum += z > -INFINITY ? exp_as_cpu(z - max) : 0.0F;
    }
    const double all = block_sum((double)sum, room.sum);
    if (threadIdx.x == 0) {
        part->max = max;
        part->sum = all;
    }
}

extern "C" __global__ void __launch_bounds__(DECODE_SAMPLE_THREADS)
    decode_sample(const __grid_constant__ decode_sample_args a) {
    __shared__ offer room[DECODE_SAMPLE_THREADS / 32];
    __shared__ filter_room filter;
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
    const bool is_filtered = how.is_filtered != 0, listed = is_filtered && how.top_k > 0 && how.top_k <= DECODE_LISTED;
    const float *logits = a.logits + (int64_t)row * a.n_vocab;
    decode_sample_part *part = a.part + (int64_t)row * gridDim.x;
    offer best = block_best(best_logit(logits, how.temperature, first, last), room);
    if (is_filtered) {
        tell_filter(logits, how, first, last, (float)best.value, listed, &part[blockIdx.x], room, filter);
    }
    if (how.temperature != 0.0F && best.id >= 0 && !listed) {
        /* Something close to the winner; it is met again in its turn. */
        const uint32_t x = philox(how.seed, (uint32_t)(a.vocab_first + best.id), (uint32_t)how.position, how.choice);
        best = block_best(draw(logits, how, a.vocab_first, first, last, best.value + gumbel_of(x)), room);
    }
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
    if (is_filtered) {
        const filtered_row whole = {logits, how, a.n_vocab, a.vocab_first, slice, (int)gridDim.x, filter, room};
        mine.id = whole.draw_filtered(mine, part);
    }
    if (threadIdx.x == 0) {
        a.drawn[row] = mine.id < 0 ? -1 : a.vocab_first + mine.id;
    }
}
