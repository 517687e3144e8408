/* A WAV file, a window at a time: 16-bit PCM at OSSICLE_SAMPLE_RATE_HZ, any number of channels up to 64. */
#ifndef OSSICLE_WAV_H
#define OSSICLE_WAV_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ossicle_model.h"

#define OSSICLE_MOST_CHANNELS 64

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static uint32_t little_endian(const uint8_t *bytes, int count) {
    uint32_t value = 0;
    for (int i = 0; i < count; i++) value |= (uint32_t)bytes[i] << (8 * i);
    return value;
}

/* Leave FILE at the first sample; return the number of channels and the bytes of sound. */
static int open_wav(const char *path, FILE *file, uint32_t *sound_bytes) {
    uint8_t head[12], chunk[8], format[16] = {0};
    if (fread(head, 1, 12, file) != 12 || memcmp(head, "RIFF", 4) || memcmp(head + 8, "WAVE", 4))
        fail(path, "no WAV file");
    while (fread(chunk, 1, 8, file) == 8) {
        uint32_t size = little_endian(chunk + 4, 4);
        if (!memcmp(chunk, "data", 4)) {
            bool pcm = little_endian(format, 2) == 1 || little_endian(format, 2) == 0xFFFE;
            if (!pcm || little_endian(format + 14, 2) != 16 || little_endian(format + 4, 4) != OSSICLE_SAMPLE_RATE_HZ)
                fail(path, "expected 16-bit PCM at " OSSICLE_TEXT(OSSICLE_SAMPLE_RATE_HZ) " Hz");
            *sound_bytes = size;
            return (int)little_endian(format + 2, 2);
        }
        uint32_t read = 0;
        if (!memcmp(chunk, "fmt ", 4) && size >= 16) read = (uint32_t)fread(format, 1, 16, file);
        if (fseek(file, (long)(size - read + (size & 1)), SEEK_CUR)) break;
    }
    fail(path, "no sound in it");
    return 0;
}

/* Fill WINDOW with the mean over channels, silence after the end; return the samples that were there. */
static size_t read_window(FILE *file, int channels, uint32_t *left, float *window) {
    size_t frame_bytes = 2 * (size_t)channels, count = 0;
    uint8_t frame[2 * OSSICLE_MOST_CHANNELS];
    memset(window, 0, OSSICLE_WINDOW_SAMPLES * sizeof(float));
    while (count < OSSICLE_WINDOW_SAMPLES && *left >= frame_bytes && fread(frame, 1, frame_bytes, file) == frame_bytes) {
        double sum = 0.0;
        for (int c = 0; c < channels; c++) sum += (int16_t)little_endian(frame + 2 * c, 2);
        window[count++] = (float)(sum / channels / 32768.0);
        *left -= (uint32_t)frame_bytes;
    }
    return count;
}

static FILE *opened_wav(const char *path, int *channels, uint32_t *sound_bytes) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail(path, "cannot be opened");
    *channels = open_wav(path, file, sound_bytes);
    if (*channels < 1 || *channels > OSSICLE_MOST_CHANNELS) fail(path, "expected 1 to 64 channels");
    return file;
}

static void print_embedding(const float *embedding) {
    for (int i = 0; i < OSSICLE_EMBEDDING_DIM; i++)
        printf("%.9g%c", (double)embedding[i], i + 1 < OSSICLE_EMBEDDING_DIM ? ' ' : '\n');
}

#endif
