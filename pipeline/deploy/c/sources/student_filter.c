/* Log-mels in, embeddings out: what compares the C student with the ONNX file, and counts its instructions.
 *
 * student_filter INPUT OUTPUT [RUNS]: INPUT holds, for each clip, an int32 number of frames and as many times
 * OSSICLE_MELS float32, frame after frame; OUTPUT gets OSSICLE_EMBEDDING_DIM float32 a clip (compiled with OSSICLE_WRITE_LOGITS: the
 * OSSICLE_LOGITS_DIM logits of a student with its classifier). Each is run RUNS times.
 */
#ifdef OSSICLE_MARK
#include <unistd.h>
#define MARK() ((void)getppid()) /* the counting plugin of QEMU reads its counters here */
#else
#define MARK() ((void)0)
#endif
#include <stdio.h>
#include <stdlib.h>

#include "ossicle_student.h"

static float log_mel[OSSICLE_MAX_FRAMES * OSSICLE_MELS], embedding[OSSICLE_EMBEDDING_DIM];
#ifdef OSSICLE_LOGITS_DIM
static float logits[OSSICLE_LOGITS_DIM];
#endif

static int student(int frames) {
#ifdef OSSICLE_LOGITS_DIM
    return ossicle_student(log_mel, frames, embedding, logits);
#else
    return ossicle_student(log_mel, frames, embedding);
#endif
}

int main(int argc, char **argv) {
    FILE *in = fopen(argc > 1 ? argv[1] : "input.bin", "rb"), *out = fopen(argc > 2 ? argv[2] : "output.bin", "wb");
    int runs = argc > 3 ? atoi(argv[3]) : 1;
    int32_t frames;
    if (!in || !out) {
        fprintf(stderr, "student_filter: cannot open its input or output\n");
        return 1;
    }
    while (fread(&frames, sizeof frames, 1, in) == 1) {
        size_t count = frames < 1 || frames > OSSICLE_MAX_FRAMES ? 0 : (size_t)frames * OSSICLE_MELS;
        if (count == 0 || fread(log_mel, sizeof(float), count, in) != count) {
            fprintf(stderr, "student_filter: a clip of %ld frames is cut short, empty or too long\n", (long)frames);
            return 1;
        }
        for (int run = 0; run < runs; run++) {
            MARK();
            int failed = student((int)frames);
            MARK();
            if (failed) {
                fprintf(stderr, "student_filter: no embedding of %ld frames\n", (long)frames);
                return 1;
            }
        }
#ifdef OSSICLE_WRITE_LOGITS
        fwrite(logits, sizeof(float), OSSICLE_LOGITS_DIM, out);
#else
        fwrite(embedding, sizeof(float), OSSICLE_EMBEDDING_DIM, out);
#endif
    }
    return fclose(in) || fclose(out);
}
