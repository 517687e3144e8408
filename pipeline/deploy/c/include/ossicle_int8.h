/* Reference int8 inference in C99: the arithmetic of CMSIS-NN, no dependency, no allocation, no global state.
 *
 * Maps are int8, one after another by mel, frame, channel ("HWC"). A real number is (q - zero) * scale. Weights are
 * int8 with zero point 0 and a scale for each output channel; bias and sums are int32. A sum becomes int8 again
 * by a 31-bit multiplier and a shift, rounded once, to nearest, as CMSIS-NN does with CMSIS_NN_USE_SINGLE_ROUNDING
 * (Lai, Suda, Chandra, "CMSIS-NN: Efficient Neural Network Kernels for Arm Cortex-M CPUs", 2018; Jacob et al.,
 * "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018).
 *
 * Loops are plain, so that a compiler turns them into SDOT, SMLAD or whatever the processor has.
 */
#ifndef OSSICLE_INT8_H
#define OSSICLE_INT8_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Kernels are not copied into their callers: their sizes would become constants and their code would multiply. */
#if defined(__GNUC__)
#define OSSICLE_KERNEL static __attribute__((noinline, unused)) void
#else
#define OSSICLE_KERNEL static inline void
#endif

/* A positive real factor: multiplier * 2^(shift - 31), multiplier in [2^30, 2^31); 0 for a factor below 2^-31. */
typedef struct {
    int32_t multiplier;
    int8_t shift;
} ossicle_factor;

/* What a step's output is rounded into. */
typedef struct {
    int8_t zero, low, high;
} ossicle_range;

static inline int8_t ossicle_clamp(int64_t value, ossicle_range range) {
    value += range.zero;
    return (int8_t)(value < range.low ? range.low : value > range.high ? range.high : value);
}

/* The right shift of a negative number is arithmetic with every compiler for every processor in use. */
static inline int64_t ossicle_times(int64_t value, ossicle_factor factor) {
    int right = 31 - factor.shift;
    return (value * factor.multiplier + ((int64_t)1 << (right - 1))) >> right;
}

/* value * factor / count, rounded once. */
static inline int64_t ossicle_times_over(int64_t value, ossicle_factor factor, int64_t count) {
    int right = 31 - factor.shift;
    int64_t product = value * factor.multiplier, half = count << (right - 1);
    int64_t divisor = count << right;
    return product >= 0 ? (product + half) / divisor : -((half - product) / divisor);
}

typedef struct {
    const int8_t *weights; /* [out][kernel_h][kernel_w][in / groups]; depthwise: [kernel_h][kernel_w][out] */
    const int32_t *bias;   /* less the input's zero point times the sum of the weights */
    const int32_t *multipliers;
    const int8_t *shifts;
    int in, out, groups;
    int kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w;
    int8_t input_zero;
    ossicle_range range;
} ossicle_conv;

static inline int8_t ossicle_conv_output(const ossicle_conv *conv, int channel, int32_t sum) {
    ossicle_factor factor = {conv->multipliers[channel], conv->shifts[channel]};
    return ossicle_clamp(ossicle_times(sum, factor), conv->range);
}

/* What one output position sees of one group, beside each other; outside the map is the zero point. */
static inline void ossicle_column(const ossicle_conv *conv, const int8_t *input, int height, int width, int y, int x,
                                  int first, int8_t *column) {
    int depth = conv->in / conv->groups;
    for (int ky = 0; ky < conv->kernel_h; ky++) {
        int row = y * conv->stride_h - conv->pad_h + ky * conv->dilation_h;
        for (int kx = 0; kx < conv->kernel_w; kx++) {
            int col = x * conv->stride_w - conv->pad_w + kx * conv->dilation_w;
            if (row < 0 || row >= height || col < 0 || col >= width)
                memset(column, conv->input_zero, (size_t)depth);
            else
                memcpy(column, input + ((size_t)row * (size_t)width + (size_t)col) * (size_t)conv->in + first,
                       (size_t)depth);
            column += depth;
        }
    }
}

/* Four output channels at a time: the column is read once for the four. */
static inline void ossicle_dot4(const int8_t *column, const int8_t *weights, int length, int32_t sums[4]) {
    const int8_t *w0 = weights, *w1 = w0 + length, *w2 = w1 + length, *w3 = w2 + length;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (int i = 0; i < length; i++) {
        s0 += column[i] * w0[i];
        s1 += column[i] * w1[i];
        s2 += column[i] * w2[i];
        s3 += column[i] * w3[i];
    }
    sums[0] += s0;
    sums[1] += s1;
    sums[2] += s2;
    sums[3] += s3;
}

static inline int32_t ossicle_dot(const int8_t *column, const int8_t *weights, int length) {
    int32_t sum = 0;
    for (int i = 0; i < length; i++) sum += column[i] * weights[i];
    return sum;
}

/* column: kernel_h * kernel_w * in / groups bytes of scratch. Also a linear layer: one row, one column, 1 x 1. */
OSSICLE_KERNEL ossicle_convolve(const ossicle_conv *conv, const int8_t *input, int height, int width,
                                    int8_t *output, int out_height, int out_width, int8_t *column) {
    int length = conv->kernel_h * conv->kernel_w * (conv->in / conv->groups), outs = conv->out / conv->groups;
    int pointwise = conv->kernel_h * conv->kernel_w * conv->groups == 1 && conv->stride_h * conv->stride_w == 1 &&
                    conv->pad_h + conv->pad_w == 0;
    for (int y = 0; y < out_height; y++)
        for (int x = 0; x < out_width; x++)
            for (int group = 0; group < conv->groups; group++) {
                const int8_t *seen = column;
                int first = group * outs, last = first + outs, o = first;
                if (pointwise)
                    seen = input + ((size_t)y * (size_t)width + (size_t)x) * (size_t)conv->in;
                else
                    ossicle_column(conv, input, height, width, y, x, group * (conv->in / conv->groups), column);
                for (; o + 4 <= last; o += 4) {
                    int32_t sums[4] = {conv->bias[o], conv->bias[o + 1], conv->bias[o + 2], conv->bias[o + 3]};
                    ossicle_dot4(seen, conv->weights + (size_t)o * (size_t)length, length, sums);
                    for (int i = 0; i < 4; i++) *output++ = ossicle_conv_output(conv, o + i, sums[i]);
                }
                for (int left = outs % 4; left > 0; left--, o++) {
                    int32_t sum = conv->bias[o] + ossicle_dot(seen, conv->weights + (size_t)o * (size_t)length, length);
                    *output++ = ossicle_conv_output(conv, o, sum);
                }
            }
}

/* One filter a channel; sixteen channels at a time, so that the sums stay in registers. */
OSSICLE_KERNEL ossicle_convolve_depthwise(const ossicle_conv *conv, const int8_t *input, int height, int width,
                                              int8_t *output, int out_height, int out_width) {
    enum { LANES = 16 };
    int channels = conv->out;
    for (int y = 0; y < out_height; y++)
        for (int x = 0; x < out_width; x++)
            for (int first = 0; first < channels; first += LANES) {
                int32_t sums[LANES];
                int lanes = channels - first < LANES ? channels - first : LANES;
                for (int i = 0; i < lanes; i++) sums[i] = conv->bias[first + i];
                for (int ky = 0; ky < conv->kernel_h; ky++) {
                    int row = y * conv->stride_h - conv->pad_h + ky * conv->dilation_h;
                    for (int kx = 0; kx < conv->kernel_w; kx++) {
                        int col = x * conv->stride_w - conv->pad_w + kx * conv->dilation_w;
                        const int8_t *w = conv->weights + (ky * conv->kernel_w + kx) * channels + first;
                        if (row < 0 || row >= height || col < 0 || col >= width)
                            for (int i = 0; i < lanes; i++) sums[i] += conv->input_zero * w[i];
                        else {
                            const int8_t *seen =
                                input + ((size_t)row * (size_t)width + (size_t)col) * (size_t)channels + first;
                            for (int i = 0; i < lanes; i++) sums[i] += seen[i] * w[i];
                        }
                    }
                }
                for (int i = 0; i < lanes; i++) *output++ = ossicle_conv_output(conv, first + i, sums[i]);
            }
}

typedef struct {
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int count_padding; /* mean: padding counts as real zeros */
    int8_t input_zero;
    ossicle_factor factor; /* mean: input scale over output scale */
    ossicle_range range;
} ossicle_window;

static inline int ossicle_from(int at, int stride, int pad) { return at * stride < pad ? 0 : at * stride - pad; }

static inline int ossicle_until(int at, int stride, int pad, int kernel, int size) {
    int end = at * stride - pad + kernel;
    return end > size ? size : end;
}

OSSICLE_KERNEL ossicle_pool_max(const ossicle_window *pool, const int8_t *input, int height, int width,
                                    int channels, int8_t *output, int out_height, int out_width) {
    for (int y = 0; y < out_height; y++)
        for (int x = 0; x < out_width; x++, output += channels) {
            int rows = ossicle_until(y, pool->stride_h, pool->pad_h, pool->kernel_h, height);
            int cols = ossicle_until(x, pool->stride_w, pool->pad_w, pool->kernel_w, width);
            memset(output, -128, (size_t)channels);
            for (int row = ossicle_from(y, pool->stride_h, pool->pad_h); row < rows; row++)
                for (int col = ossicle_from(x, pool->stride_w, pool->pad_w); col < cols; col++) {
                    const int8_t *seen = input + ((size_t)row * (size_t)width + (size_t)col) * (size_t)channels;
                    for (int c = 0; c < channels; c++) output[c] = seen[c] > output[c] ? seen[c] : output[c];
                }
        }
}

OSSICLE_KERNEL ossicle_pool_mean(const ossicle_window *pool, const int8_t *input, int height, int width,
                                     int channels, int8_t *output, int out_height, int out_width) {
    for (int y = 0; y < out_height; y++)
        for (int x = 0; x < out_width; x++) {
            int top = ossicle_from(y, pool->stride_h, pool->pad_h), left = ossicle_from(x, pool->stride_w, pool->pad_w);
            int rows = ossicle_until(y, pool->stride_h, pool->pad_h, pool->kernel_h, height);
            int cols = ossicle_until(x, pool->stride_w, pool->pad_w, pool->kernel_w, width);
            int inside = (rows - top) * (cols - left);
            int count = pool->count_padding ? pool->kernel_h * pool->kernel_w : inside;
            for (int c = 0; c < channels; c++) {
                int32_t sum = -inside * pool->input_zero;
                for (int row = top; row < rows; row++)
                    for (int col = left; col < cols; col++)
                        sum += input[((size_t)row * (size_t)width + (size_t)col) * (size_t)channels + (size_t)c];
                *output++ = ossicle_clamp(ossicle_times_over(sum, pool->factor, count), pool->range);
            }
        }
}

/* One operand of a sum or product: steps of 0 repeat it over positions or over channels. */
typedef struct {
    int position_step, channel_step;
    int8_t zero;
    int32_t multiplier; /* sum only: its scale over the output's, with the shift that both share */
} ossicle_operand;

OSSICLE_KERNEL ossicle_add(ossicle_operand a, const int8_t *left, ossicle_operand b, const int8_t *right,
                               int shift, ossicle_range range, int positions, int channels, int8_t *output) {
    int64_t half = (int64_t)1 << (30 - shift);
    for (int p = 0; p < positions; p++, left += a.position_step, right += b.position_step)
        for (int c = 0; c < channels; c++) {
            int64_t sum = (int64_t)(left[c * a.channel_step] - a.zero) * a.multiplier +
                          (int64_t)(right[c * b.channel_step] - b.zero) * b.multiplier;
            *output++ = ossicle_clamp((sum + half) >> (31 - shift), range);
        }
}

OSSICLE_KERNEL ossicle_multiply(ossicle_operand a, const int8_t *left, ossicle_operand b, const int8_t *right,
                                    ossicle_factor factor, ossicle_range range, int positions, int channels,
                                    int8_t *output) {
    for (int p = 0; p < positions; p++, left += a.position_step, right += b.position_step)
        for (int c = 0; c < channels; c++) {
            int32_t product = (left[c * a.channel_step] - a.zero) * (right[c * b.channel_step] - b.zero);
            *output++ = ossicle_clamp(ossicle_times(product, factor), range);
        }
}

OSSICLE_KERNEL ossicle_rescale(const int8_t *input, int8_t zero, ossicle_factor factor, ossicle_range range,
                                   int count, int8_t *output) {
    for (int i = 0; i < count; i++) output[i] = ossicle_clamp(ossicle_times(input[i] - zero, factor), range);
}

/* The few numbers that are float: what comes in, the embedding that goes out, means of whole maps. */
static inline int8_t ossicle_quantise(float value, float scale, ossicle_range range) {
    float rounded = rintf(value / scale) + (float)range.zero;
    if (!(rounded > (float)range.low)) return range.low;
    return rounded >= (float)range.high ? range.high : (int8_t)rounded;
}

OSSICLE_KERNEL ossicle_quantise_all(const float *input, float scale, ossicle_range range, int count,
                                        int8_t *output) {
    for (int i = 0; i < count; i++) output[i] = ossicle_quantise(input[i], scale, range);
}

OSSICLE_KERNEL ossicle_dequantise_all(const int8_t *input, float scale, int8_t zero, int count, float *output) {
    for (int i = 0; i < count; i++) output[i] = (float)(input[i] - zero) * scale;
}

/* Frames of mels, as the frontend writes them, to a map of one channel. */
OSSICLE_KERNEL ossicle_quantise_log_mel(const float *log_mel, int mels, int frames, float mean, float deviation,
                                            float scale, ossicle_range range, int8_t *output) {
    for (int m = 0; m < mels; m++)
        for (int t = 0; t < frames; t++)
            *output++ = ossicle_quantise((log_mel[t * mels + m] - mean) / deviation, scale, range);
}

/* Over whole maps, one number a channel: the mean, the largest, the L2 norm, the largest of the frames' means. */
OSSICLE_KERNEL ossicle_map_mean(const int8_t *input, int positions, int channels, float scale, int8_t zero,
                                    float *output) {
    for (int c = 0; c < channels; c++) {
        int32_t sum = 0;
        for (int p = 0; p < positions; p++) sum += input[p * channels + c] - zero;
        output[c] = (float)sum * scale / (float)positions;
    }
}

OSSICLE_KERNEL ossicle_map_max(const int8_t *input, int positions, int channels, float scale, int8_t zero,
                                   float *output) {
    for (int c = 0; c < channels; c++) {
        int8_t most = -128;
        for (int p = 0; p < positions; p++) most = input[p * channels + c] > most ? input[p * channels + c] : most;
        output[c] = (float)(most - zero) * scale;
    }
}

OSSICLE_KERNEL ossicle_map_norm(const int8_t *input, int positions, int channels, float scale, int8_t zero,
                                    float *output) {
    for (int c = 0; c < channels; c++) {
        int64_t sum = 0;
        for (int p = 0; p < positions; p++) {
            int32_t value = input[p * channels + c] - zero;
            sum += value * value;
        }
        output[c] = sqrtf((float)sum) * scale;
    }
}

OSSICLE_KERNEL ossicle_map_max_of_means(const int8_t *input, int mels, int frames, int channels, float scale,
                                            int8_t zero, float *output) {
    for (int c = 0; c < channels; c++) {
        int32_t most = INT32_MIN;
        for (int t = 0; t < frames; t++) {
            int32_t sum = 0;
            for (int m = 0; m < mels; m++) sum += input[(m * frames + t) * channels + c] - zero;
            most = sum > most ? sum : most;
        }
        output[c] = (float)most * scale / (float)mels;
    }
}

/* Arithmetic of a few float numbers, one a channel; a step of 0 repeats the one number. */
OSSICLE_KERNEL ossicle_vector_mean(const float *input, int channels, float *output) {
    float sum = 0.0f;
    for (int c = 0; c < channels; c++) sum += input[c];
    *output = sum / (float)channels;
}

OSSICLE_KERNEL ossicle_vector_divide(const float *a, int a_step, const float *b, int b_step, int channels,
                                         float *output) {
    for (int c = 0; c < channels; c++) output[c] = a[c * a_step] / b[c * b_step];
}

OSSICLE_KERNEL ossicle_vector_multiply(const float *a, int a_step, const float *b, int b_step, int channels,
                                           float *output) {
    for (int c = 0; c < channels; c++) output[c] = a[c * a_step] * b[c * b_step];
}

OSSICLE_KERNEL ossicle_vector_add(const float *a, int a_step, const float *b, int b_step, int channels,
                                      float *output) {
    for (int c = 0; c < channels; c++) output[c] = a[c * a_step] + b[c * b_step];
}

#endif
