/* Does this device compute what was exported? Golden vectors through frontend and student; exit status 0 if so.
 *
 *     cc -std=c99 -O3 check.c -lm -o check && ./check
 */
#include <math.h>
#include <stdio.h>

#include "ossicle_student.h"
/* After the student, for both name the number of mels. */
#include "ossicle_frontend.h"
#include "ossicle_golden.h"

#define TOLERANCE 1e-4f

static float samples[OSSICLE_GOLDEN_SAMPLES], log_mel[OSSICLE_MOST_FRAMES(OSSICLE_GOLDEN_SAMPLES) * OSSICLE_MELS];
static float embedding[OSSICLE_EMBEDDING_DIM];

static float apart(const float *got, const float *want, int count) {
    float most = 0.0f;
    for (int i = 0; i < count; i++)
        if (!(fabsf(got[i] - want[i]) <= most)) most = fabsf(got[i] - want[i]); /* NaN too */
    return most;
}

int main(void) {
    int failed;
    float level, steps;
    for (int i = 0; i < OSSICLE_GOLDEN_SAMPLES; i++) samples[i] = (float)ossicle_golden_samples[i] / 32768.0f;
    if (ossicle_log_mel(samples, OSSICLE_GOLDEN_SAMPLES, log_mel) < OSSICLE_GOLDEN_FRAMES) {
        printf("frontend: too few frames\n");
        return 1;
    }
    level = apart(log_mel, ossicle_golden_log_mel, OSSICLE_GOLDEN_FRAMES * OSSICLE_MELS);
#ifdef OSSICLE_LOGITS_DIM
    static float logits[OSSICLE_LOGITS_DIM];
    failed = ossicle_student(ossicle_golden_log_mel, OSSICLE_GOLDEN_FRAMES, embedding, logits);
#else
    failed = ossicle_student(ossicle_golden_log_mel, OSSICLE_GOLDEN_FRAMES, embedding);
#endif
    steps = apart(embedding, ossicle_golden_embedding, OSSICLE_EMBEDDING_DIM) / OSSICLE_GOLDEN_STEP;
    failed = failed || !(level <= TOLERANCE) || !(steps <= 1.001f);
    printf("frontend: %.2g of %.2g; student: %.3g of 1 step; %s\n", (double)level, (double)TOLERANCE, (double)steps,
           failed ? "FAILED" : "passed");
    return failed;
}
