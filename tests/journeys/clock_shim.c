/*
 * Clocks that are steered by the file that CLOCK_FILE names, two numbers of 64 bits: by how many seconds
 * the wall clock is ahead, and the monotonic one. Loaded by LD_PRELOAD.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long long *steered;

__attribute__((constructor)) static void find_file(void)
{
	const char *path = getenv("CLOCK_FILE");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *found;

	if (file < 0)
		return;
	found = mmap(NULL, 2 * sizeof(*steered), PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (found != MAP_FAILED)
		steered = found;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = syscall(SYS_clock_gettime, clock, now);

	if (result)
		return result;
	if (clock == CLOCK_REALTIME && steered)
		now->tv_sec += steered[0];
	if (clock == CLOCK_MONOTONIC && steered)
		now->tv_sec += steered[1];
	return result;
}
