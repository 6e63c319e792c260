// What the emulator has once, whatever kernels are linked with it: the switch of fibers and the launch by name.
#include "shim.h"
asm(R"(
.text
.globl wels_emu_switch
.type wels_emu_switch,@function
wels_emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size wels_emu_switch,.-wels_emu_switch
.section .note.GNU-stack,"",@progbits
.text
)");
using Kernel = const char *(*)(const unsigned *dims, size_t smem, uint32_t seed, void **args);
struct Named {
  const char *name;
  Kernel kernel;
};
extern "C" const Named wels_emu_kernels[];  // written by the build script; ends with nulls
// Runs a kernel; 0, 1 with the reason in `message`, or 2 where there is none of that name.
extern "C" int wels_emu_launch(const char *name, const unsigned *dims, size_t smem, uint32_t seed, void **args,
                               char *message, size_t len) {
  for (const Named *k = wels_emu_kernels; k->name; k++)
    if (!strcmp(k->name, name)) {
      const char *error = k->kernel(dims, smem, seed, args);
      if (error) snprintf(message, len, "%s", error);
      return error != nullptr;
    }
  snprintf(message, len, "there is no such kernel");
  return 2;
}
