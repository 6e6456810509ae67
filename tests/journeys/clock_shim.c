/*
 * Shifts the clocks of a process. The environment variable CLOCK_FILE names a file with two 64-bit
 * numbers: the offsets of the wall clock and of the monotonic clock, in seconds. Loaded with LD_PRELOAD.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long long *offsets;

__attribute__((constructor)) static void find_file(void)
{
	const char *path = getenv("CLOCK_FILE");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *found;

	if (file < 0)
		return;
	found = mmap(NULL, 2 * sizeof(*offsets), PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (found != MAP_FAILED)
		offsets = found;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = syscall(SYS_clock_gettime, clock, now);

	if (result)
		return result;
	if (clock == CLOCK_REALTIME && offsets)
		now->tv_sec += offsets[0];
	if (clock == CLOCK_MONOTONIC && offsets)
		now->tv_sec += offsets[1];
	return result;
}
