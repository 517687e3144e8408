/* Print the embedding of each window of a WAV file with ONNX Runtime's C API:
 *
 *     ./embed_wav SOUND.wav [MODEL.onnx [FRONTEND.onnx]]
 *
 * SOUND is 16-bit PCM at OSSICLE_SAMPLE_RATE_HZ, any number of channels; the last window is followed by silence.
 * C99. The constants stand in ossicle_model.h, which was written for this model. */
#include "onnxruntime_c_api.h"
#include "ossicle_wav.h"

static const OrtApi *api;

static void check(const char *what, OrtStatus *status) {
    if (status != NULL) fail(what, api->GetErrorMessage(status));
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

    int channels;
    uint32_t left = 0;
    FILE *file = opened_wav(arguments[1], &channels, &left);

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
        print_embedding(embedding);
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
