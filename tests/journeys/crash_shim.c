/*
 * Injects a fault at one of the calls with which a process changes files. Loaded with LD_PRELOAD.
 *
 * The environment variable CRASH_ARM names a file. While the file holds "<n> <fault> <errno> <serial>",
 * calls are counted from 1, and the fault occurs at the n-th: `before` and `after` kill the process
 * before or after the call, `fail` makes this one call fail with errno, `fail-from` makes this call and
 * all later ones fail. New content restarts the count. After a fault the file "<CRASH_ARM>.done" exists.
 * Calls on standard output and standard error, and on anything but regular files, are not counted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum fault { NONE, BEFORE, AFTER, FAIL };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char last[128];
static long count;
static int fault_errno;

static void read_arm_file(char *text, size_t size)
{
	const char *path = getenv("CRASH_ARM");
	text[0] = 0;
	if (!path)
		return;
	int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return;
	long got = syscall(SYS_read, fd, text, size - 1);
	text[got > 0 ? got : 0] = 0;
	syscall(SYS_close, fd);
}

static void mark_done(void)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s.done", getenv("CRASH_ARM"));
	syscall(SYS_close, syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
}

/* Counts a call; returns the fault to inject. */
static enum fault step(void)
{
	char armed[sizeof(last)], word[16];
	long n;
	enum fault fault = NONE;
	int saved = errno;

	pthread_mutex_lock(&lock);
	read_arm_file(armed, sizeof(armed));
	if (strcmp(armed, last) != 0) {
		strcpy(last, armed);
		count = 0;
	}
	if (sscanf(armed, "%ld %15s %d", &n, word, &fault_errno) == 3) {
		count++;
		if (count == n && strcmp(word, "before") == 0)
			fault = BEFORE;
		else if (count == n && strcmp(word, "after") == 0)
			fault = AFTER;
		else if ((count == n && strcmp(word, "fail") == 0) || (count >= n && strcmp(word, "fail-from") == 0))
			fault = FAIL;
		if (fault != NONE)
			mark_done();
	}
	pthread_mutex_unlock(&lock);
	errno = saved;
	return fault;
}

static void die(void)
{
	syscall(SYS_kill, getpid(), SIGKILL);
	for (;;)
		pause();
}

static int is_counted_file(int fd)
{
	struct stat st;
	int saved = errno;
	int counted = fd > 2 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
	errno = saved;
	return counted;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define RUN(type, counted, call)                        \
	do {                                            \
		enum fault fault = (counted) ? step() : NONE; \
		if (fault == BEFORE)                     \
			die();                          \
		if (fault == FAIL) {                     \
			errno = fault_errno;                \
			return -1;                      \
		}                                       \
		type result = (call);                   \
		if (fault == AFTER)                      \
			die();                          \
		return result;                          \
	} while (0)

/* _IOW('o', 4, struct reflink_arguments): three 64-bit numbers, see fs/ocfs2/ocfs2_ioctl.h in Linux */
#define OCFS2_IOC_REFLINK 0x40186f04

#define MAKES(flags) (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE)

#define MODE_ARGUMENT(flags)                     \
	mode_t mode = 0;                         \
	if (MAKES(flags)) {                      \
		va_list arguments;               \
		va_start(arguments, flags);      \
		mode = va_arg(arguments, mode_t); \
		va_end(arguments);               \
	}

int open(const char *path, int flags, ...)
{
	MODE_ARGUMENT(flags)
	RUN(int, MAKES(flags), REAL(open)(path, flags, mode));
}

int open64(const char *path, int flags, ...)
{
	MODE_ARGUMENT(flags)
	RUN(int, MAKES(flags), REAL(open64)(path, flags, mode));
}

int openat(int folder, const char *path, int flags, ...)
{
	MODE_ARGUMENT(flags)
	RUN(int, MAKES(flags), REAL(openat)(folder, path, flags, mode));
}

int openat64(int folder, const char *path, int flags, ...)
{
	MODE_ARGUMENT(flags)
	RUN(int, MAKES(flags), REAL(openat64)(folder, path, flags, mode));
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	RUN(int, request == FICLONE || request == OCFS2_IOC_REFLINK, REAL(ioctl)(fd, request, argument));
}

int mkdir(const char *path, mode_t mode)
{
	RUN(int, 1, REAL(mkdir)(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode)
{
	RUN(int, 1, REAL(mkdirat)(folder, path, mode));
}

int rmdir(const char *path)
{
	RUN(int, 1, REAL(rmdir)(path));
}

int unlink(const char *path)
{
	RUN(int, 1, REAL(unlink)(path));
}

int unlinkat(int folder, const char *path, int flags)
{
	RUN(int, 1, REAL(unlinkat)(folder, path, flags));
}

int rename(const char *from, const char *to)
{
	RUN(int, 1, REAL(rename)(from, to));
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
	RUN(int, 1, REAL(renameat)(from_folder, from, to_folder, to));
}

int fsync(int fd)
{
	RUN(int, 1, REAL(fsync)(fd));
}

int fdatasync(int fd)
{
	RUN(int, 1, REAL(fdatasync)(fd));
}

int ftruncate(int fd, off_t length)
{
	RUN(int, 1, REAL(ftruncate)(fd, length));
}

int ftruncate64(int fd, off64_t length)
{
	RUN(int, 1, REAL(ftruncate64)(fd, length));
}

ssize_t write(int fd, const void *bytes, size_t length)
{
	RUN(ssize_t, is_counted_file(fd), REAL(write)(fd, bytes, length));
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
	RUN(ssize_t, is_counted_file(fd), REAL(pwrite)(fd, bytes, length, offset));
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset)
{
	RUN(ssize_t, is_counted_file(fd), REAL(pwrite64)(fd, bytes, length, offset));
}
