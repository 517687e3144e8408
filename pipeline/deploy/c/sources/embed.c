/* An example of the whole: mono float32 samples on standard input to one embedding on standard output, as text.
 *
 *     cc -std=c99 -O3 embed.c -lm -o embed
 *     embed < clip.f32
 *
 * The frontend is fed as a microphone feeds it, a block at a time; the student hears the last OSSICLE_MAX_FRAMES frames.
 */
#include <stdio.h>
#include <string.h>

#include "ossicle_student.h"
/* After the student, for both name the number of mels. */
#include "ossicle_frontend.h"

#define BLOCK 160

static float log_mel[(OSSICLE_MAX_FRAMES + OSSICLE_MOST_FRAMES(BLOCK)) * OSSICLE_MELS];
static float embedding[OSSICLE_EMBEDDING_DIM];
static ossicle_stream stream;

/* Keeps the newest frames, as many as the student hears. */
static int kept(int frames) {
    int extra = frames - OSSICLE_MAX_FRAMES;
    if (extra <= 0) return frames;
    memmove(log_mel, log_mel + extra * OSSICLE_MELS, sizeof(float) * OSSICLE_MAX_FRAMES * OSSICLE_MELS);
    return OSSICLE_MAX_FRAMES;
}

int main(void) {
    float block[BLOCK];
    int frames = 0, last;
    size_t count;
    ossicle_stream_start(&stream);
    while ((count = fread(block, sizeof(float), BLOCK, stdin)) > 0)
        frames = kept(frames + ossicle_stream_push(&stream, block, (int)count, log_mel + frames * OSSICLE_MELS));
    last = ossicle_stream_finish(&stream, log_mel + frames * OSSICLE_MELS);
    frames = last < 0 ? 0 : kept(frames + last);
#ifdef OSSICLE_LOGITS_DIM
    static float logits[OSSICLE_LOGITS_DIM];
    last = ossicle_student(log_mel, frames, embedding, logits);
#else
    last = ossicle_student(log_mel, frames, embedding);
#endif
    if (last) {
        fprintf(stderr, "embed: too few samples\n");
        return 1;
    }
    for (int i = 0; i < OSSICLE_EMBEDDING_DIM; i++) printf("%.9g\n", (double)embedding[i]);
    return 0;
}
