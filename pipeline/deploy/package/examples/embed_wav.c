/* Print the embedding of each window of a WAV file with ONNX Runtime's C API:
 *
 *     ./embed_wav SOUND.wav [MODEL.onnx [FRONTEND.onnx]]
 *
 * SOUND is 16-bit PCM at OSSICLE_SAMPLE_RATE_HZ, any number of channels; the last window is followed by silence.
 * C99. The constants stand in ossicle_model.h, which was written for this model. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"
#include "ossicle_model.h"

static const OrtApi *api;

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void check(const char *what, OrtStatus *status) {
    if (status != NULL) fail(what, api->GetErrorMessage(status));
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
    uint8_t frame[2 * 64];
    memset(window, 0, OSSICLE_WINDOW_SAMPLES * sizeof(float));
    while (count < OSSICLE_WINDOW_SAMPLES && *left >= frame_bytes && fread(frame, 1, frame_bytes, file) == frame_bytes) {
        double sum = 0.0;
        for (int c = 0; c < channels; c++) sum += (int16_t)little_endian(frame + 2 * c, 2);
        window[count++] = (float)(sum / channels / 32768.0);
        *left -= (uint32_t)frame_bytes;
    }
    return count;
}

static OrtValue *run(OrtSession *session, const char *input, const OrtValue *value, const char *output) {
    OrtValue *made = NULL;
    check(input, api->Run(session, NULL, &input, &value, 1, &output, 1, &made));
    return made;
}

int main(int count, char **arguments) {
    if (count < 2) fail(arguments[0], "SOUND.wav [MODEL.onnx [FRONTEND.onnx]]");
    const OrtApiBase *base = OrtGetApiBase();
    api = base->GetApi(ORT_API_VERSION);
    if (api == NULL) fail("ONNX Runtime is older than the header", base->GetVersionString());

    FILE *file = fopen(arguments[1], "rb");
    if (file == NULL) fail(arguments[1], "cannot be opened");
    uint32_t left = 0;
    int channels = open_wav(arguments[1], file, &left);
    if (channels < 1 || channels > 64) fail(arguments[1], "expected 1 to 64 channels");

    OrtEnv *environment;
    OrtSessionOptions *options;
    OrtMemoryInfo *memory;
    OrtSession *frontend, *student;
    check("environment", api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "ossicle", &environment));
    check("options", api->CreateSessionOptions(&options));
    check("options", api->SetIntraOpNumThreads(options, 1));
    const char *model = count > 2 ? arguments[2] : "../" OSSICLE_MODEL;
    const char *log_mel = count > 3 ? arguments[3] : "../frontend.onnx";
    check(log_mel, api->CreateSession(environment, log_mel, options, &frontend));
    check(model, api->CreateSession(environment, model, options, &student));
    check("memory", api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

    static float window[OSSICLE_WINDOW_SAMPLES];
    const int64_t shape[2] = {1, OSSICLE_WINDOW_SAMPLES};
    while (read_window(file, channels, &left, window) > 0) {
        OrtValue *sound = NULL;
        float *embedding;
        check("window", api->CreateTensorWithDataAsOrtValue(memory, window, sizeof window, shape, 2,
                                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &sound));
        OrtValue *levels = run(frontend, "waveform", sound, "log_mel");
        OrtValue *made = run(student, "log_mel", levels, "embedding");
        check("embedding", api->GetTensorMutableData(made, (void **)&embedding));
        for (int i = 0; i < OSSICLE_EMBEDDING_DIM; i++)
            printf("%.9g%c", embedding[i], i + 1 < OSSICLE_EMBEDDING_DIM ? ' ' : '\n');
        api->ReleaseValue(made);
        api->ReleaseValue(levels);
        api->ReleaseValue(sound);
    }
    api->ReleaseMemoryInfo(memory);
    api->ReleaseSession(student);
    api->ReleaseSession(frontend);
    api->ReleaseSessionOptions(options);
    api->ReleaseEnv(environment);
    fclose(file);
    return 0;
}
