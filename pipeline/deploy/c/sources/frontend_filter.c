/* Waveforms in, log-mels out, whole or as a stream: what compares the C frontend with the other forms.
 *
 * frontend_filter INPUT OUTPUT: INPUT holds, for each waveform, an int32 portion (0: all at once; else a stream that
 * hears so many samples at a time), an int32 number of samples, and as many float32. OUTPUT gets an int32 number of
 * frames (-1: too short) and OSSICLE_MELS float32 each, frame after frame.
 */
#ifdef OSSICLE_MARK
#include <unistd.h>
#define MARK() ((void)getppid()) /* the counting plugin of QEMU reads its counters here */
#else
#define MARK() ((void)0)
#endif
#include <stdio.h>

#include "ossicle_frontend.h"

#ifndef MOST_SAMPLES
#define MOST_SAMPLES 65536
#endif

static float samples[MOST_SAMPLES], log_mel[OSSICLE_MOST_FRAMES(MOST_SAMPLES) * OSSICLE_MELS];

static int streamed(int portion, int count) {
#if OSSICLE_STANDARDISE
    (void)portion;
    (void)count;
    return -1;
#else
    static ossicle_stream stream;
    int frames = 0, last;
    ossicle_stream_start(&stream);
    for (int at = 0; at < count; at += portion)
        frames += ossicle_stream_push(&stream, samples + at, count - at < portion ? count - at : portion,
                                      log_mel + frames * OSSICLE_MELS);
    last = ossicle_stream_finish(&stream, log_mel + frames * OSSICLE_MELS);
    return last < 0 ? -1 : frames + last;
#endif
}

int main(int argc, char **argv) {
    FILE *in = fopen(argc > 1 ? argv[1] : "input.bin", "rb"), *out = fopen(argc > 2 ? argv[2] : "output.bin", "wb");
    int32_t head[2], frames;
    if (!in || !out) {
        fprintf(stderr, "frontend_filter: cannot open its input or output\n");
        return 1;
    }
    while (fread(head, sizeof head, 1, in) == 1) {
        if (head[0] < 0 || head[1] < 0 || head[1] > MOST_SAMPLES ||
            fread(samples, sizeof(float), (size_t)head[1], in) != (size_t)head[1]) {
            fprintf(stderr, "frontend_filter: a waveform of %ld samples is cut short or too long\n", (long)head[1]);
            return 1;
        }
        MARK();
        frames = head[0] ? streamed((int)head[0], (int)head[1]) : ossicle_log_mel(samples, (int)head[1], log_mel);
        MARK();
        fwrite(&frames, sizeof frames, 1, out);
        if (frames > 0) fwrite(log_mel, sizeof(float), (size_t)frames * OSSICLE_MELS, out);
    }
    return fclose(in) || fclose(out);
}
