/*
 * syscall_filter PROGRAM [ARGUMENT...]
 *
 * Runs a program with only the system calls in allowed.h; any other call kills it with SIGSYS, as
 * SystemCallFilter= of a systemd unit does. allowed.h has the numbers, with a comma after each.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const unsigned allowed[] = {
#include "allowed.h"
};

#define COUNT (sizeof allowed / sizeof allowed[0])

int main(int argc, char **argv)
{
    static struct sock_filter rules[2 * COUNT + 2];
    struct sock_fprog program = { .len = 2 * COUNT + 2, .filter = rules };
    size_t i;

    if (argc < 2)
        return 98;
    rules[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (i = 0; i < COUNT; i++) {
        rules[2 * i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
        rules[2 * i + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    rules[2 * COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("syscall_filter: the filter cannot be set");
        return 99;
    }
    execv(argv[1], argv + 1);
    perror(argv[1]);
    return 98;
}
