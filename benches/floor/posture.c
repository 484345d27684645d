// posture SNAPSHOT CGROUP CMD [ARG...]: what the kernel takes for all that a throwaway container is, and nothing else.
// A snapshot that is ready is claimed by a rename, and destroyed in the end; a cgroup with a limit; a user namespace with its
// maps, an id-mapped root, the mounts, masks and device nodes of tupper's defaults; a filter of 512 instructions, compiled by
// the kernel. No store, no names, no checks, no way back when something fails. SNAPSHOT is a directory that holds `rootfs`.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/btrfs.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define TRY(what) do { if ((what) < 0) { perror(#what); _exit(125); } } while (0)
#define FIRST "2000224256"

static void put(const char *path, const char *text) {
  int file = open(path, O_WRONLY);
  TRY(file);
  TRY(write(file, text, strlen(text)));
  close(file);
}

static struct sock_filter filter[600];
static unsigned short filled;

// A binary search over the numbers of calls: a comparison and an answer for each.
static void search(int from, int to) {
  if (to - from == 1) {
    filter[filled++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    return;
  }
  int middle = (from + to) / 2, at = filled++;
  search(from, middle);
  filter[at] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, middle, filled - at - 1, 0);
  search(middle, to);
}

static void filter_calls(void) {
  filter[filled++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
  search(0, 256);
  struct sock_fprog program = {filled, filter};
  TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static void bind(const char *from, const char *to, unsigned long flags) {
  TRY(mount(from, to, NULL, MS_BIND, NULL));
  if (flags) TRY(mount(NULL, to, NULL, MS_REMOUNT | MS_BIND | flags, NULL));
}

static void inside(int root, int dev, int wait, char **argv) {
  char byte;
  TRY(read(wait, &byte, 1));
  TRY(syscall(SYS_setgroups, 0, NULL));
  TRY(setresgid(0, 0, 0));
  TRY(setresuid(0, 0, 0));
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const unsigned long plain = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  TRY(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
  syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
  TRY(syscall(SYS_move_mount, root, "", AT_FDCWD, "/mnt", MOVE_MOUNT_F_EMPTY_PATH));
  TRY(chdir("/mnt"));
  TRY(mount("proc", "proc", "proc", plain, NULL));
  put("proc/sys/net/ipv4/ping_group_range", "0 65535");
  TRY(syscall(SYS_move_mount, dev, "", AT_FDCWD, "dev", MOVE_MOUNT_F_EMPTY_PATH));
  TRY(mount("sysfs", "sys", "sysfs", plain | MS_RDONLY, NULL));
  const char *links[][2] = {{"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"}, {"/proc/self/fd/1", "dev/stdout"},
                            {"/proc/self/fd/2", "dev/stderr"}, {"pts/ptmx", "dev/ptmx"}, {"/proc/kcore", "dev/core"}};
  for (int n = 0; n < 6; n++) TRY(symlink(links[n][0], links[n][1]));
  mkdir("dev/pts", 0755), mkdir("dev/shm", 0755), mkdir("dev/mqueue", 0755);
  TRY(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"));
  TRY(mount("tmpfs", "dev/shm", "tmpfs", plain, "mode=1777,size=65536k"));
  TRY(mount("mqueue", "dev/mqueue", "mqueue", plain, NULL));
  TRY(mount("tmpfs", "/dev", "tmpfs", plain, "mode=0755"));
  TRY(mkdir("/dev/empty", 0755));
  const char *files[] = {"hosts", "hostname", "resolv.conf"};
  char from[64], to[64];
  for (int n = 0; n < 3; n++) {
    snprintf(from, sizeof from, "/dev/%s", files[n]), snprintf(to, sizeof to, "etc/%s", files[n]);
    int file = open(from, O_WRONLY | O_CREAT, 0644), target = open(to, O_WRONLY | O_CREAT, 0644);
    TRY(write(file, "127.0.0.1\tlocalhost\n", 20));
    close(file), close(target);
    bind(from, to, plain);
  }
  bind("/dev/empty", "sys/fs/cgroup", plain | MS_RDONLY);
  bind("dev/null", "proc/interrupts", 0), bind("dev/null", "proc/keys", 0), bind("dev/null", "proc/timer_list", 0);
  bind("/dev/empty", "sys/firmware", plain | MS_RDONLY);
  const char *read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys"};
  for (int n = 0; n < 4; n++) bind(read_only[n], read_only[n], plain | MS_RDONLY);
  TRY(unshare(CLONE_NEWCGROUP));
  TRY(syscall(SYS_pivot_root, ".", "."));
  TRY(umount2(".", MNT_DETACH));
  TRY(chdir("/"));
  for (int n = 0; n < 41; n++) prctl(PR_CAPBSET_DROP, n, 0, 0, 0);
  filter_calls();
  execvp(argv[0], argv);
  _exit(127);
}

int main(int argc, char **argv) {
  if (argc < 4) return fprintf(stderr, "usage: posture SNAPSHOT CGROUP CMD [ARG...]\n"), 125;
  char claimed[4096], path[4096];
  snprintf(claimed, sizeof claimed, "%s.claimed", argv[1]);
  TRY(rename(argv[1], claimed));
  TRY(mkdir(argv[2], 0755));
  snprintf(path, sizeof path, "%s/pids.max", argv[2]);
  put(path, "1024");
  int held = open(claimed, O_DIRECTORY | O_RDONLY | O_CLOEXEC), go[2], wait[2];
  TRY(held);
  TRY(pipe(go));
  TRY(pipe(wait));
  snprintf(path, sizeof path, "%s/tasks", argv[2]);
  if (access(path, W_OK)) snprintf(path, sizeof path, "%s/cgroup.procs", argv[2]); // cgroup v2
  int tree = syscall(SYS_open_tree, held, "rootfs", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  TRY(tree);
  int type = syscall(SYS_fsopen, "tmpfs", 0);
  TRY(type);
  syscall(SYS_fsconfig, type, 1, "mode", "0755", 0), syscall(SYS_fsconfig, type, 1, "size", "64k", 0);
  syscall(SYS_fsconfig, type, 1, "uid", FIRST, 0), syscall(SYS_fsconfig, type, 1, "gid", FIRST, 0);
  TRY(syscall(SYS_fsconfig, type, 6, NULL, NULL, 0));
  int dev = syscall(SYS_fsmount, type, 0, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
  TRY(dev);
  int pidfd = -1;
  struct clone_args args = {
      .flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_PIDFD,
      .pidfd = (unsigned long)&pidfd, .exit_signal = SIGCHLD};
  pid_t pid = syscall(SYS_clone3, &args, sizeof args);
  TRY(pid);
  if (pid == 0) {
    put(path, "0");
    setsid(), umask(0), sethostname("floor", 5);
    TRY(write(wait[1], "", 1));
    inside(tree, dev, go[0], argv + 3);
  }
  char byte, map[64] = "0 " FIRST " 65536\n";
  TRY(read(wait[0], &byte, 1));
  snprintf(path, sizeof path, "/proc/%d/uid_map", pid), put(path, map);
  snprintf(path, sizeof path, "/proc/%d/gid_map", pid), put(path, map);
  snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = open(path, O_RDONLY | O_CLOEXEC)};
  TRY(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof attr));
  const struct { const char *name; int major, minor; } nodes[] = {{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7},
                                                                  {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
  for (int n = 0; n < 6; n++) {
    TRY(mknodat(dev, nodes[n].name, S_IFCHR | 0666, makedev(nodes[n].major, nodes[n].minor)));
    TRY(fchownat(dev, nodes[n].name, atoi(FIRST), atoi(FIRST), 0));
  }
  TRY(write(go[1], "", 1));
  int status;
  TRY(waitpid(pid, &status, 0));
  close(tree), close(dev);
  TRY(rmdir(argv[2]));
  struct btrfs_ioctl_vol_args name = {.name = "rootfs"};
  TRY(ioctl(held, BTRFS_IOC_SNAP_DESTROY, &name));
  TRY(rmdir(claimed));
  return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}
