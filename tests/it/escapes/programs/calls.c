// calls: system calls that change or read the host as a whole, with arguments that do no harm where they succeed; one
// `NAME: RESULT` a line. `reached` says that the call got past the question whether it may: EPERM, EACCES and ENOSYS are
// refusals, every other error complains of the arguments.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

static void report(const char *name, long result)
{
	int refused = result < 0 && (errno == EPERM || errno == EACCES || errno == ENOSYS);

	printf("%s: %s\n", name, refused ? strerror(errno) : "reached");
	fflush(stdout);
}

int main(void)
{
	union bpf_attr map = { .map_type = BPF_MAP_TYPE_HASH, .key_size = 4, .value_size = 4, .max_entries = 1 };
	struct perf_event_attr event = { .type = PERF_TYPE_SOFTWARE, .size = sizeof event };
	struct timex time = { .modes = ADJ_TICK, .tick = 1 }; // so short that none takes it
	char host[65];

	report("bpf", syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map));
	report("perf_event_open", syscall(SYS_perf_event_open, &event, -1, 0, -1, 0));
	report("init_module", syscall(SYS_init_module, "", 0, ""));
	report("delete_module", syscall(SYS_delete_module, "no_such_module", O_NONBLOCK));
	report("kexec_load", syscall(SYS_kexec_load, 0, 1, 0, ~0ul));
	report("swapon", syscall(SYS_swapon, "/no/such/file", 0));
	report("swapoff", syscall(SYS_swapoff, "/no/such/file"));
	report("syslog", syscall(SYS_syslog, 3, host, sizeof host));
	report("iopl", syscall(SYS_iopl, 3));
	report("acct", syscall(SYS_acct, "/no/such/file"));
	report("clock_adjtime", clock_adjtime(CLOCK_REALTIME, &time));
	report("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0x1234, 0));
	report("setns", setns(open("/proc/self/ns/mnt", O_RDONLY), 0));
	report("mknod", mknod("/tmp/escape-device", S_IFBLK | 0600, 0x700));
	unlink("/tmp/escape-device");
	gethostname(host, sizeof host);
	report("sethostname", sethostname(host, strlen(host)));
	report("mount", mount("none", "/tmp", "tmpfs", 0, ""));
	report("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
	report("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
	report("pivot_root", syscall(SYS_pivot_root, "/no/such/place", "/no/such/place"));
	report("fanotify_init", syscall(SYS_fanotify_init, 0x4, O_RDONLY));
	report("lookup_dcookie", syscall(SYS_lookup_dcookie, 0, host, sizeof host));
	report("umount", umount2("/proc", MNT_DETACH));
	report("unshare mount", unshare(CLONE_NEWNS));
	report("unshare network", unshare(CLONE_NEWNET));
	return 0;
}
