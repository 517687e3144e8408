/* QEMU user-mode plugin: instructions executed at each look at the clock between two markers.
 *
 * ONNX Runtime's profiler reads the clock before and after each node. The guest calls getppid before and after each
 * inference; in between, every clock_gettime (a system call, as QEMU 7.2 gives the guest no vDSO) takes the counter.
 * INSN_OUT names the JSON file: one list an inference, counts since its first marker, the last one at its second.
 * The prototypes are those of QEMU's plugin API version 1, whose header Debian does not package.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
typedef struct {
    const char *target_name;
    struct { int min, cur; } version;
    int system_emulation;
    int smp_vcpus, max_vcpus;
} plugin_info;
typedef void (*translated)(plugin_id, struct qemu_plugin_tb *);
typedef void (*system_call)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                            uint64_t, uint64_t);

#define PUBLIC __attribute__((visibility("default")))
PUBLIC int qemu_plugin_version = 1;
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translated);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *counter, uint64_t add);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, system_call);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

#define GETPPID 173
#define CLOCK_GETTIME 113
#define MAX_LOOKS (1 << 20)
static uint64_t counter, start, looks[MAX_LOOKS];
static size_t used;
static size_t ends[512];
static int inference_count, inside, full;
static unsigned marking; /* the thread that infers: the runtime's others look at the clock too */

static void look(void) {
    if (used < MAX_LOOKS) looks[used++] = counter - start;
    else full = 1;
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *block) {
    qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &counter, qemu_plugin_tb_n_insns(block));
}

static void on_system_call(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                           uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    if (number == CLOCK_GETTIME && inside && vcpu == marking) look();
    if (number != GETPPID) return;
    if (inside) {
        look();
        if (inference_count < 512) ends[inference_count++] = used;
    } else {
        start = counter;
        marking = vcpu;
    }
    inside = !inside;
}

static void on_exit_write(plugin_id id, void *unused) {
    const char *path = getenv("INSN_OUT");
    FILE *out = path && !full ? fopen(path, "w") : NULL;
    if (!out) return;
    fputc('[', out);
    for (int i = 0; i < inference_count; i++) {
        fprintf(out, "%s[", i ? ", " : "");
        for (size_t k = i ? ends[i - 1] : 0; k < ends[i]; k++)
            fprintf(out, "%s%llu", k > (i ? ends[i - 1] : 0) ? ", " : "", (unsigned long long)looks[k]);
        fputc(']', out);
    }
    fprintf(out, "]\n");
    fclose(out);
}

PUBLIC int qemu_plugin_install(plugin_id id, const plugin_info *info, int argc, char **argv) {
    if (strcmp(info->target_name, "aarch64") != 0 || info->system_emulation) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    qemu_plugin_register_atexit_cb(id, on_exit_write, NULL);
    return 0;
}
