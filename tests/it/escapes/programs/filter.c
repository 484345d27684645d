// `NAME: RESULT` a line: system calls that a filter may refuse, and what became of each (tests/it/cli/seccomp.rs).

#define _GNU_SOURCE
#include <stdio.h>
#include <errno.h>
#include <sched.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/personality.h>
#include <string.h>

static void say(const char *name, long result) {
    printf("%s: %s\n", name, result < 0 ? strerrorname_np(errno) : "made");
}

int main(void) {
    int here = open("/", O_RDONLY | O_DIRECTORY);
    // struct btrfs_ioctl_vol_args: a descriptor, and the name of what is to be made.
    char name[4096] = { 0 };
    strcpy(name + 8, "made");
    say("clone3", syscall(SYS_clone3, NULL, 0));
    say("not made yet", syscall(600));
    say("io_uring_setup", syscall(425, 1, NULL));
    say("add_key", syscall(SYS_add_key, "user", "a", "b", 1, -3));
    say("mount", syscall(SYS_mount, NULL, NULL, NULL, 0, NULL));
    say("unshare user", unshare(CLONE_NEWUSER));
    say("unshare files", unshare(CLONE_FILES));
    say("bpf", syscall(SYS_bpf, 0, NULL, 0));
    say("vsock", socket(40, SOCK_STREAM, 0));
    say("alg", socket(38, SOCK_SEQPACKET, 0));
    say("audit", socket(16, SOCK_RAW, 9));
    say("route", socket(16, SOCK_RAW, 0));
    say("subvolume", ioctl(here, 0x5000940e, name));
    say("subvolume, wide", syscall(SYS_ioctl, here, 0x15000940eUL, name));
    say("clone range", ioctl(here, 0x40049409, -1));
    say("sti", ioctl(0, 0x5412, "x"));
    say("fsync", fsync(-1));
    say("no randomize", personality(0x40000));
    say("personality", personality(0xffffffff));
#ifdef __x86_64__
    say("x32", syscall(0x40000000 + 39));
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
    printf("i386: %s\n", result > 0 ? "made" : "refused");
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(21), "b"(0), "c"(0), "d"(0) : "memory");
    printf("i386 mount: %s\n", result == -EPERM ? "EPERM" : "else");
#endif
    return 0;
}
