/* Vectors and reset of a Cortex-M4 with newlib's semihosting: files and exit go through the debugger, here QEMU. */
#include <stdint.h>

extern uint32_t __stack, __data_start, __data_end, __data_source;
extern void _start(void);
void ossicle_reset(void);
void ossicle_fault(void);

void ossicle_reset(void) {
    volatile uint32_t *cpacr = (volatile uint32_t *)0xE000ED88u;
    *cpacr |= 0xFu << 20; /* the floating-point unit is off after reset */
    for (uint32_t *to = &__data_start, *from = &__data_source; to < &__data_end;) *to++ = *from++;
    _start();
}

void ossicle_fault(void) {
    for (;;) {
    }
}

typedef void (*ossicle_vector)(void);
__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    ossicle_vector handlers[15];
} ossicle_vectors_of_cpu = {
    &__stack,
    {ossicle_reset, ossicle_fault, ossicle_fault, ossicle_fault, ossicle_fault, ossicle_fault, ossicle_fault,
     ossicle_fault, ossicle_fault, ossicle_fault, ossicle_fault, ossicle_fault, ossicle_fault, ossicle_fault,
     ossicle_fault}};
