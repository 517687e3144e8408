/* Print the embedding of each window of a WAV file: C99, no library beside it.
 *
 *     make && ./embed_wav SOUND.wav
 *
 * The int8 student with its weights stands in ossicle_student.h, the log-mel in ossicle_frontend.h. SOUND is 16-bit PCM
 * at OSSICLE_SAMPLE_RATE_HZ, any number of channels; the last window is followed by silence. */
#include "ossicle_student.h"
/* After the student, for both name the number of mels. */
#include "ossicle_frontend.h"
#include "ossicle_wav.h"

static float window[OSSICLE_WINDOW_SAMPLES], log_mel[OSSICLE_MAX_FRAMES * OSSICLE_MELS];
static float embedding[OSSICLE_EMBEDDING_DIM];
#ifdef OSSICLE_LOGITS_DIM
static float logits[OSSICLE_LOGITS_DIM];
#endif

int main(int count, char **arguments) {
    if (count < 2) fail(arguments[0], "SOUND.wav");
    int channels;
    uint32_t left = 0;
    FILE *file = opened_wav(arguments[1], &channels, &left);
    while (read_window(file, channels, &left, window) > 0) {
        int frames = ossicle_log_mel(window, OSSICLE_WINDOW_SAMPLES, log_mel);
#ifdef OSSICLE_LOGITS_DIM
        int failed = ossicle_student(log_mel, frames, embedding, logits);
#else
        int failed = ossicle_student(log_mel, frames, embedding);
#endif
        if (failed) fail(arguments[1], "a window of a length that the student does not hear");
        print_embedding(embedding);
    }
    fclose(file);
    return 0;
}
