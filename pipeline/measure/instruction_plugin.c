/* QEMU user-mode plugin: executed aarch64 instructions by class, between markers.
 *
 * The guest calls getppid (aarch64 system call 173) before and after each inference; the plugin takes its counters
 * there and writes, at exit, one list a class with the difference between each two consecutive markers.
 * INSN_OUT names the JSON file. The prototypes are those of QEMU's plugin API version 1, whose header Debian
 * does not package.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
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
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

enum { ALL, DOT, MMLA, FMLA, LOAD_STORE, SVE_SME, CLASSES };
static const char *const names[CLASSES] = {"instructions", "dot", "mmla", "fmla", "load_store", "sve_sme"};
static uint64_t counters[CLASSES];

#define MAX_MARKS 512
#define GETPPID 173
static uint64_t marks[MAX_MARKS][CLASSES];
static int mark_count;

/* Encodings: Arm Architecture Reference Manual for A-profile, C4.1. */
static void classify(uint32_t word, uint64_t count[CLASSES]) {
    unsigned size = (word >> 22) & 3;
    if ((word & 0x9f20fc00) == 0x0e009400 && size == 2) count[DOT]++;      /* SDOT, UDOT (vector) */
    else if ((word & 0x9f00f400) == 0x0f00e000 && size == 2) count[DOT]++; /* SDOT, UDOT (by element) */
    else if ((word & 0xdfe0fc00) == 0x4e80a400) count[MMLA]++;             /* SMMLA, UMMLA */
    else if ((word & 0xffe0fc00) == 0x4e80ac00) count[MMLA]++;             /* USMMLA */
    if ((word & 0xbfa0fc00) == 0x0e20cc00) count[FMLA]++;                  /* FMLA (vector) */
    else if ((word & 0xbf80f400) == 0x0f801000) count[FMLA]++;             /* FMLA (by element) */
    if ((word & 0x0a000000) == 0x08000000) count[LOAD_STORE]++;
    if ((word & 0x1e000000) == 0x04000000 || (word & 0x9e000000) == 0x80000000) count[SVE_SME]++;
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *block) {
    size_t length = qemu_plugin_tb_n_insns(block);
    uint64_t count[CLASSES] = {length};
    for (size_t i = 0; i < length; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        classify(word, count);
    }
    for (int c = 0; c < CLASSES; c++)
        if (count[c]) qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &counters[c], count[c]);
}

static void on_system_call(plugin_id id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                           uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    if (number == GETPPID && mark_count < MAX_MARKS) memcpy(marks[mark_count++], counters, sizeof counters);
}

static void on_exit_write(plugin_id id, void *unused) {
    const char *path = getenv("INSN_OUT");
    FILE *out = path ? fopen(path, "w") : NULL;
    if (!out) return;
    fputc('{', out);
    for (int c = 0; c < CLASSES; c++) {
        fprintf(out, "%s\"%s\": [", c ? ", " : "", names[c]);
        for (int i = 1; i < mark_count; i++)
            fprintf(out, "%s%llu", i > 1 ? ", " : "", (unsigned long long)(marks[i][c] - marks[i - 1][c]));
        fputc(']', out);
    }
    fprintf(out, "}\n");
    fclose(out);
}

PUBLIC int qemu_plugin_install(plugin_id id, const plugin_info *info, int argc, char **argv) {
    if (strcmp(info->target_name, "aarch64") != 0 || info->system_emulation) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    qemu_plugin_register_atexit_cb(id, on_exit_write, NULL);
    return 0;
}
