// unlisted: system calls that need no capability and are behind many a hole of the kernel; one `NAME: RESULT` a line.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void report(const char *name, long result)
{
	printf("%s: %s\n", name, result < 0 ? strerror(errno) : "done");
	fflush(stdout);
}

int main(void)
{
	struct io_uring_params ring = { 0 };

	report("io_uring_setup", syscall(SYS_io_uring_setup, 1, &ring));
	report("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC | 1)); // UFFD_USER_MODE_ONLY
	report("unshare user", unshare(CLONE_NEWUSER));
	return 0;
}
