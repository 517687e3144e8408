/* Log-mel in C99: Hann window, real FFT, sparse mel bands, logarithm; of a whole signal or of a stream.
 *
 * ossicle_frontend.h holds the constants and includes this file. A frame of the stream has the very bits of the same
 * frame of the whole signal: one function computes both. The FFT is Stockham's, radix 4, 2 and any prime, of half
 * the length (Cooley and Tukey, 1965; Van Loan, "Computational Frameworks for the Fast Fourier Transform", 1992).
 */
#ifndef OSSICLE_LOG_MEL_H
#define OSSICLE_LOG_MEL_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define OSSICLE_HALF (OSSICLE_N_FFT / 2)
#define OSSICLE_BINS (OSSICLE_HALF + 1)

/* Room, in frames, that a push of so many samples, or the finish (0), may need. */
#define OSSICLE_MOST_FRAMES(samples) (((samples) + OSSICLE_N_FFT) / OSSICLE_HOP + 2)

static float ossicle_fft_data[2][OSSICLE_N_FFT];

/* e^(-2 pi i j / n_fft) */
static inline float ossicle_cos(int j) { return ossicle_cosines[j]; }
static inline float ossicle_minus_sin(int j) { return ossicle_cosines[j + OSSICLE_N_FFT / 4]; }

static inline void ossicle_turned(float *to, float real, float imaginary, int j) {
    float c = ossicle_cos(j), s = ossicle_minus_sin(j);
    to[0] = real * c - imaginary * s;
    to[1] = real * s + imaginary * c;
}

/* One stage: groups of `radix` numbers, `blocks` apart, transformed, turned, and put beside each other. */
static inline void ossicle_fft_stage(const float *from, float *to, int radix, int length, int stride) {
    int blocks = length / radix, twiddle = OSSICLE_N_FFT / length;
    for (int p = 0; p < blocks; p++)
        for (int q = 0; q < stride; q++) {
            const float *x = from + 2 * (q + stride * p);
            float *y = to + 2 * (q + stride * radix * p);
            int apart = 2 * stride * blocks, beside = 2 * stride;
            if (radix == 4) {
                const float *a = x, *b = x + apart, *c = b + apart, *d = c + apart;
                float acr = a[0] + c[0], aci = a[1] + c[1], amr = a[0] - c[0], ami = a[1] - c[1];
                float bdr = b[0] + d[0], bdi = b[1] + d[1], bmr = b[0] - d[0], bmi = b[1] - d[1];
                y[0] = acr + bdr;
                y[1] = aci + bdi;
                ossicle_turned(y + beside, amr + bmi, ami - bmr, p * twiddle);
                ossicle_turned(y + 2 * beside, acr - bdr, aci - bdi, 2 * p * twiddle);
                ossicle_turned(y + 3 * beside, amr - bmi, ami + bmr, 3 * p * twiddle);
            } else if (radix == 2) {
                const float *b = x + apart;
                y[0] = x[0] + b[0];
                y[1] = x[1] + b[1];
                ossicle_turned(y + beside, x[0] - b[0], x[1] - b[1], p * twiddle);
            } else {
                for (int k = 0; k < radix; k++) {
                    float real = 0.0f, imaginary = 0.0f, part[2];
                    for (int j = 0; j < radix; j++) {
                        ossicle_turned(part, x[j * apart], x[j * apart + 1], j * k % radix * (OSSICLE_N_FFT / radix));
                        real += part[0];
                        imaginary += part[1];
                    }
                    ossicle_turned(y + k * beside, real, imaginary, p * k * twiddle);
                }
            }
        }
}

/* ossicle_fft_data[0] holds n_fft real numbers; the |X|^2 of bins 0 to n_fft / 2 replace the first of them. */
static inline float *ossicle_power_spectrum(void) {
    int length = OSSICLE_HALF, stride = 1, at = 0;
    for (size_t i = 0; i < sizeof ossicle_radices / sizeof *ossicle_radices; i++) {
        int radix = ossicle_radices[i];
        ossicle_fft_stage(ossicle_fft_data[at], ossicle_fft_data[1 - at], radix, length, stride);
        length /= radix;
        stride *= radix;
        at = 1 - at;
    }
    const float *z = ossicle_fft_data[at];
    float *power = ossicle_fft_data[1 - at];
    for (int k = 0; k <= OSSICLE_HALF; k++) {
        const float *a = z + 2 * (k % OSSICLE_HALF), *b = z + 2 * ((OSSICLE_HALF - k) % OSSICLE_HALF);
        float even_real = 0.5f * (a[0] + b[0]), even_imaginary = 0.5f * (a[1] - b[1]), odd[2];
        ossicle_turned(odd, 0.5f * (a[1] + b[1]), -0.5f * (a[0] - b[0]), k);
        float real = even_real + odd[0], imaginary = even_imaginary + odd[1];
        power[k] = real * real + imaginary * imaginary;
    }
    return power;
}

static inline float ossicle_level(float band) {
    if (band < OSSICLE_LOG_FLOOR) band = OSSICLE_LOG_FLOOR;
    band += OSSICLE_LOG_OFFSET;
#if OSSICLE_LOG_IS_LN
    return logf(band);
#else
    return OSSICLE_LOG_TIMES * log10f(band);
#endif
}

/* From n_fft windowed samples in ossicle_fft_data[0] to one frame of OSSICLE_MELS numbers. */
static inline void ossicle_frame(float *log_mel) {
    float *power = ossicle_power_spectrum();
#if OSSICLE_ROOT
    for (int k = 0; k < OSSICLE_BINS; k++) power[k] = OSSICLE_POWER == 1.0f ? sqrtf(power[k])
                                                                            : powf(power[k], 0.5f * OSSICLE_POWER);
#endif
#if OSSICLE_LINEAR
    for (int k = 0; k < OSSICLE_BINS; k++) log_mel[k] = ossicle_level(power[k]);
#else
    const float *weight = ossicle_band_weights;
    for (int m = 0; m < OSSICLE_MELS; m++) {
        float sum = 0.0f;
        for (int i = 0; i < ossicle_band_bins[m]; i++) sum += *weight++ * power[ossicle_band_first[m] + i];
        log_mel[m] = ossicle_level(sum);
    }
#endif
}

/* Frames of a whole signal; -1 where it is too short for one, or for reflection padding. */
static inline int ossicle_frames(int samples) {
#if OSSICLE_CENTER
    return samples <= (OSSICLE_REFLECT ? OSSICLE_HALF : 0) ? -1 : 1 + samples / OSSICLE_HOP;
#else
    return samples < OSSICLE_N_FFT ? -1 : 1 + (samples - OSSICLE_N_FFT) / OSSICLE_HOP;
#endif
}

/* The whole signal: returns its frames, one after another in log_mel, or -1 as ossicle_frames. Not reentrant. */
static inline int ossicle_log_mel(const float *samples, int count, float *log_mel) {
    int frames = ossicle_frames(count);
    float mean = 0.0f, gain = 1.0f;
#if OSSICLE_STANDARDISE
    double sum = 0.0, squares = 0.0;
    for (int i = 0; i < count; i++) sum += samples[i];
    for (int i = 0; i < count; i++) squares += (samples[i] - sum / count) * (samples[i] - sum / count);
    mean = (float)(sum / count);
    gain = 1.0f / sqrtf((float)(squares / count) + 1e-7f);
#endif
    for (int frame = 0; frame < frames; frame++) {
        for (int i = 0; i < OSSICLE_N_FFT; i++) {
            int at = frame * OSSICLE_HOP + i - (OSSICLE_CENTER ? OSSICLE_HALF : 0);
#if OSSICLE_REFLECT
            if (at < 0) at = -at;
            if (at >= count) at = 2 * (count - 1) - at;
#endif
            float sample = at < 0 || at >= count ? 0.0f : (samples[at] - mean) * gain;
            ossicle_fft_data[0][i] = sample * ossicle_analysis_window[i];
        }
        ossicle_frame(log_mel + frame * OSSICLE_MELS);
    }
    return frames;
}

#if !OSSICLE_STANDARDISE
/* A stream's state: start it, push samples in any portions, finish. */
typedef struct {
    float heard[OSSICLE_N_FFT];
#if OSSICLE_REFLECT
    float last[OSSICLE_HALF + 1]; /* a ring: what the end reflects, and at first what the start does */
#endif
    int filled, skip;
    int32_t count; /* samples heard; stops at the largest that matters */
    int ring;
} ossicle_stream;

static inline int ossicle_stream_sample(ossicle_stream *stream, float sample, float *log_mel) {
    if (stream->skip > 0) {
        stream->skip--;
        return 0;
    }
    stream->heard[stream->filled++] = sample;
    if (stream->filled < OSSICLE_N_FFT) return 0;
    for (int i = 0; i < OSSICLE_N_FFT; i++) ossicle_fft_data[0][i] = stream->heard[i] * ossicle_analysis_window[i];
    ossicle_frame(log_mel);
    stream->filled = OSSICLE_HOP < OSSICLE_N_FFT ? OSSICLE_N_FFT - OSSICLE_HOP : 0;
    stream->skip = OSSICLE_HOP > OSSICLE_N_FFT ? OSSICLE_HOP - OSSICLE_N_FFT : 0;
    memmove(stream->heard, stream->heard + OSSICLE_N_FFT - stream->filled, (size_t)stream->filled * sizeof(float));
    return 1;
}

static inline void ossicle_stream_start(ossicle_stream *stream) {
    memset(stream, 0, sizeof *stream);
#if OSSICLE_CENTER && !OSSICLE_REFLECT
    for (int i = 0; i < OSSICLE_HALF; i++) ossicle_stream_sample(stream, 0.0f, NULL);
#endif
}

/* Returns the frames that these samples complete, written to log_mel one after another. */
static inline int ossicle_stream_push(ossicle_stream *stream, const float *samples, int count, float *log_mel) {
    int frames = 0;
    for (int i = 0; i < count; i++) {
        if (stream->count <= OSSICLE_N_FFT) stream->count++;
#if OSSICLE_REFLECT
        stream->last[stream->ring] = samples[i];
        stream->ring = (stream->ring + 1) % (OSSICLE_HALF + 1);
        if (stream->count <= OSSICLE_HALF) continue;
        if (stream->count == OSSICLE_HALF + 1) {
            for (int k = OSSICLE_HALF; k > 0; k--)
                frames += ossicle_stream_sample(stream, stream->last[k], log_mel + frames * OSSICLE_MELS);
            for (int k = 0; k < OSSICLE_HALF; k++)
                frames += ossicle_stream_sample(stream, stream->last[k], log_mel + frames * OSSICLE_MELS);
        }
#endif
        frames += ossicle_stream_sample(stream, samples[i], log_mel + frames * OSSICLE_MELS);
    }
    return frames;
}

/* Ends the signal: returns its last frames, or -1 as ossicle_frames. Start the stream before it hears more. */
static inline int ossicle_stream_finish(ossicle_stream *stream, float *log_mel) {
    int frames = 0;
    if (ossicle_frames(stream->count) < 0) return -1;
#if OSSICLE_CENTER
    for (int i = 0; i < OSSICLE_HALF; i++) {
        float sample = 0.0f;
#if OSSICLE_REFLECT
        /* The newest stands before `ring`; the end reflects what came before it, backwards. */
        sample = stream->last[(stream->ring + 2 * (OSSICLE_HALF + 1) - 2 - i) % (OSSICLE_HALF + 1)];
#endif
        frames += ossicle_stream_sample(stream, sample, log_mel + frames * OSSICLE_MELS);
    }
#endif
    (void)log_mel;
    return frames;
}
#endif

#endif
