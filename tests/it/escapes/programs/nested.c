// nested COMMAND…: becomes root of a user namespace of its own, with a mount, network and cgroup namespace that belong to
// it, and tries what its capabilities allow there; one `NAME: RESULT` a line. Then runs the command there.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void report(const char *name, int result)
{
	printf("%s: %s\n", name, result < 0 ? strerror(errno) : "done");
	fflush(stdout);
}

static void put(const char *file, const char *text)
{
	int fd = open(file, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		report(file, -1);
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	int result = unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWCGROUP);

	report("unshare", result);
	if (result < 0)
		return 1;
	put("/proc/self/setgroups", "deny");
	put("/proc/self/uid_map", "0 0 1");
	put("/proc/self/gid_map", "0 0 1");
	mkdir("/tmp/hierarchy", 0755);
	report("mount cgroup", mount("none", "/tmp/hierarchy", "cgroup", 0, "none,name=release-escape"));
	report("remount /proc/sys", mount("none", "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL));
	report("unmask", umount2("/proc/keys", MNT_DETACH));
	report("nf_tables", socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER));
	report("mknod", mknod("/tmp/device", S_IFBLK | 0600, 0x700));
	execvp(argv[1], argv + 1);
	return 1;
}
