/*
 * old_kernel PROGRAM [ARGUMENT...]
 *
 * Runs a program as on Linux 4.1, the kernel of the oldest supported host: all newer system calls fail
 * with ENOSYS. Checks this with some calls first, and exits with status 99 if they do not fail so.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* execveat, the last system call of Linux 4.1: see arch/x86/entry/syscalls/syscall_64.tbl and
 * include/uapi/asm-generic/unistd.h in Linux 4.1. */
#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#define LAST_CALL 322
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#define LAST_CALL 281
#else
#error "set the last system call of Linux 4.1 on this architecture"
#endif

static int missing(long call)
{
    errno = 0;
    return syscall(call, -1, 0, 0, 0, 0, 0) == -1 && errno == ENOSYS;
}

int main(int argc, char **argv)
{
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, LAST_CALL, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { .len = sizeof rules / sizeof rules[0], .filter = rules };

    if (argc < 2)
        return 98;
    if (missing(SYS_execveat)) {
        fputs("old_kernel: execveat is missing without the filter\n", stderr);
        return 99;
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("old_kernel: the filter cannot be set");
        return 99;
    }
    if (missing(SYS_execveat) || !missing(LAST_CALL + 1) || !missing(SYS_statx) || !missing(435 /* clone3 */)) {
        fputs("old_kernel: the filter does not work\n", stderr);
        return 99;
    }
    execv(argv[1], argv + 1);
    perror(argv[1]);
    return 98;
}
