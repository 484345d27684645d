// subvolume DIR: what btrfs lets everybody who may write to DIR do with subvolumes, one `CALL: RESULT` a line.
// ioctl-btrfs: SUBVOL_CREATE and SNAP_CREATE_V2 need no capability (fs/btrfs/ioctl.c), SUBVOL_SETFLAGS only ownership.
#include <errno.h>
#include <fcntl.h>
#include <linux/btrfs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void report(const char *call, int result)
{
	printf("%s: %s\n", call, result < 0 ? strerror(errno) : "done");
}

int main(int argc, char **argv)
{
	struct btrfs_ioctl_vol_args made = { .name = "nested" }, gone = { .name = "gone" };
	struct btrfs_ioctl_vol_args_v2 snapshot = { .name = "snapshot" };
	__u64 flags = BTRFS_SUBVOL_RDONLY;
	int dir, nested, top;

	if (argc != 2 || (dir = open(argv[1], O_RDONLY | O_DIRECTORY)) < 0)
		return 2;
	report("create", ioctl(dir, BTRFS_IOC_SUBVOL_CREATE, &made));
	nested = openat(dir, "nested", O_RDONLY | O_DIRECTORY);
	report("make read-only", ioctl(nested, BTRFS_IOC_SUBVOL_SETFLAGS, &flags));
	snapshot.fd = top = open("/", O_RDONLY | O_DIRECTORY);
	report("snapshot", ioctl(dir, BTRFS_IOC_SNAP_CREATE_V2, &snapshot));
	report("create another", ioctl(dir, BTRFS_IOC_SUBVOL_CREATE, &gone));
	report("destroy", ioctl(dir, BTRFS_IOC_SNAP_DESTROY, &gone));
	report("make the root read-only", ioctl(top, BTRFS_IOC_SUBVOL_SETFLAGS, &flags));
	flags = 0;
	ioctl(top, BTRFS_IOC_SUBVOL_SETFLAGS, &flags);
	return 0;
}
