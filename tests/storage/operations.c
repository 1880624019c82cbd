/* Does one operation after the other in two directories, as standard input says, and says what became of each.
 *
 * operations FIRST SECOND. A line is an operation and its arguments, with spaces between; "both", "first" or "second" in
 * front says where it is done. The answer is one line: what came of it in the first directory, a tab, and in the second.
 * Open files have numbers, of which each directory has its own. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define FILES 4
#define MOST (1 << 20)

static int top[2], files[2][FILES];
static char *words[16], said[2][1 << 21], data[MOST];
static size_t length;
static int side;

static void say(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	length += vsnprintf(said[side] + length, sizeof said[side] - length, format, list);
	va_end(list);
	if (length >= sizeof said[side])
		abort();
}

static void done(long result)
{
	if (result < 0)
		say("%s", strerrorname_np(errno));
	else
		say("%ld", result);
}

/* Bytes, as runs of equal ones. */
static void runs(const char *bytes, size_t count)
{
	for (size_t at = 0, to; at < count; at = to) {
		for (to = at; to < count && bytes[to] == bytes[at]; to++)
			;
		say("%02xx%zu ", (unsigned char)bytes[at], to - at);
	}
}

static void attributes(int result, const struct stat *st)
{
	if (result < 0) {
		done(result);
		return;
	}
	int dir = S_ISDIR(st->st_mode);
	say("%o links %ld size %lld owner %d:%d", st->st_mode, dir ? 0L : (long)st->st_nlink,
	    dir ? 0LL : (long long)st->st_size, st->st_uid, st->st_gid);
}

static int by_name(const void *one, const void *other)
{
	return strcmp(*(char *const *)one, *(char *const *)other);
}

static int opened(const char *path)
{
	return openat(top[side], path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

static char *names[1 << 18];

static void list(const char *path)
{
	int fd = openat(top[side], path, O_RDONLY | O_DIRECTORY);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir) {
		done(-1);
		return;
	}
	size_t count = 0;
	for (struct dirent *entry; (entry = readdir(dir));) {
		struct stat st;
		int kind = entry->d_type;
		if (kind == DT_UNKNOWN && fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			kind = IFTODT(st.st_mode);
		if (asprintf(&names[count++], "%s,%d", entry->d_name, kind) < 0)
			abort();
	}
	closedir(dir);
	qsort(names, count, sizeof *names, by_name);
	for (size_t at = 0; at < count; at++) {
		say("%s ", names[at]);
		free(names[at]);
	}
}

/* Removes what is listed while it is listed, as rm does. */
static void empty(const char *path)
{
	int fd = openat(top[side], path, O_RDONLY | O_DIRECTORY), removed = 0;
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir) {
		done(-1);
		return;
	}
	for (struct dirent *entry; (entry = readdir(dir));)
		removed += unlinkat(fd, entry->d_name, 0) == 0;
	closedir(dir);
	say("%d", removed);
}

static long number(int word)
{
	return words[word] ? strtol(words[word], NULL, 0) : 0;
}

static int file(int word)
{
	return files[side][number(word) % FILES];
}

static void keep(int word, int fd)
{
	int *slot = &files[side][number(word) % FILES];
	struct stat st;
	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
		/* What seeks and sizes mean there is each file system's own. */
		close(fd);
		say("a directory");
		return;
	}
	if (fd >= 0) {
		if (*slot >= 0)
			close(*slot);
		*slot = fd;
	}
	done(fd < 0 ? -1 : 0);
}

static void mapped(int word, int write)
{
	long offset = number(word + 1), count = number(word + 2), start = offset & -4096;
	struct stat st;
	if (fstat(file(word), &st) < 0) {
		done(-1);
		return;
	}
	/* Beyond the last page of a file is SIGBUS. */
	if (offset + count > st.st_size)
		count = st.st_size - offset;
	if (count <= 0) {
		say("beyond");
		return;
	}
	int access = write ? PROT_READ | PROT_WRITE : PROT_READ;
	char *map = mmap(NULL, offset - start + count, access, MAP_SHARED, file(word), start);
	if (map == MAP_FAILED) {
		done(-1);
		return;
	}
	if (write) {
		memset(map + offset - start, number(word + 3), count);
		if (number(word + 4))
			done(msync(map, offset - start + count, MS_SYNC));
	} else {
		runs(map + offset - start, count);
	}
	munmap(map, offset - start + count);
}

/* fcntl's locks: by this process's own open file, or as another process with an open file of its own sees them. */
static void locked(int word, int command)
{
	struct flock lock = { .l_type = number(word + 1), .l_start = number(word + 2), .l_len = number(word + 3) };
	done(fcntl(file(word), command, &lock));
}

static void seen(const char *path, int word)
{
	struct flock lock = { .l_type = number(word), .l_start = number(word + 1), .l_len = number(word + 2) };
	int pipes[2];
	if (pipe(pipes) < 0)
		abort();
	pid_t child = fork();
	if (child == 0) {
		int fd = openat(top[side], path, O_RDWR | O_NONBLOCK);
		int result = fd < 0 ? -1 : fcntl(fd, F_GETLK, &lock);
		char answer[200];
		int size;
		if (result < 0)
			size = sprintf(answer, "%s", strerrorname_np(errno));
		else if (lock.l_type == F_UNLCK)
			size = sprintf(answer, "free");
		else
			size = sprintf(answer, "%d %lld %lld", lock.l_type, (long long)lock.l_start, (long long)lock.l_len);
		if (write(pipes[1], answer, size) < 0)
			_exit(1);
		_exit(0);
	}
	close(pipes[1]);
	char answer[200] = "";
	if (read(pipes[0], answer, sizeof answer - 1) < 0)
		abort();
	close(pipes[0]);
	waitpid(child, NULL, 0);
	say("%s", answer);
}

static void operate(void)
{
	const char *what = words[1], *one = words[2], *two = words[3];
	struct stat st;
	int at = top[side];
#define IS(name) (strcmp(what, name) == 0)
	if (IS("open"))
		keep(2, openat(at, two, number(4) | O_NONBLOCK | O_CLOEXEC, number(5)));
	else if (IS("close")) {
		int *slot = &files[side][number(2) % FILES];
		done(close(*slot));
		*slot = -1;
	} else if (IS("pread")) {
		long count = pread(file(2), data, number(4), number(3));
		if (count < 0)
			done(count);
		else
			runs(data, count);
	} else if (IS("pwrite")) {
		memset(data, number(5), number(4));
		done(pwrite(file(2), data, number(4), number(3)));
	} else if (IS("read")) {
		long count = read(file(2), data, number(3));
		if (count < 0)
			done(count);
		else
			runs(data, count);
	} else if (IS("write")) {
		memset(data, number(4), number(3));
		done(write(file(2), data, number(3)));
	} else if (IS("seek"))
		done(lseek(file(2), number(3), number(4)));
	else if (IS("setfl"))
		done(fcntl(file(2), F_SETFL, number(3)));
	else if (IS("ftruncate"))
		done(ftruncate(file(2), number(3)));
	else if (IS("truncate")) {
		int fd = openat(at, one, O_WRONLY | O_NONBLOCK);
		if (fd < 0)
			done(-1);
		else {
			char link[64];
			sprintf(link, "/proc/self/fd/%d", fd);
			done(truncate(link, number(3)));
			close(fd);
		}
	} else if (IS("fallocate"))
		done(fallocate(file(2), number(3), number(4), number(5)));
	else if (IS("fsync"))
		done(fsync(file(2)));
	else if (IS("copy")) {
		off_t from = number(3), to = number(5);
		done(copy_file_range(file(2), &from, file(4), &to, number(6), 0));
	} else if (IS("fstat"))
		attributes(fstat(file(2), &st), &st);
	else if (IS("stat"))
		attributes(fstatat(at, one, &st, AT_SYMLINK_NOFOLLOW), &st);
	else if (IS("same")) {
		struct stat other;
		int result = fstatat(at, one, &st, AT_SYMLINK_NOFOLLOW);
		result = result < 0 ? result : fstatat(at, two, &other, AT_SYMLINK_NOFOLLOW);
		done(result < 0 ? result : st.st_ino == other.st_ino && st.st_dev == other.st_dev);
	} else if (IS("mkdir"))
		done(mkdirat(at, one, number(3)));
	else if (IS("rmdir"))
		done(unlinkat(at, one, AT_REMOVEDIR));
	else if (IS("unlink"))
		done(unlinkat(at, one, 0));
	else if (IS("rename"))
		done(syscall(SYS_renameat2, at, one, at, two, number(4)));
	else if (IS("link"))
		done(linkat(at, one, at, two, 0));
	else if (IS("symlink"))
		done(symlinkat(one, at, two));
	else if (IS("readlink")) {
		long count = readlinkat(at, one, data, MOST);
		if (count < 0)
			done(count);
		else
			say("%.*s", (int)count, data);
	} else if (IS("mknod"))
		done(mknodat(at, one, number(3), 0));
	else if (IS("chmod"))
		done(fchmodat(at, one, number(3), 0));
	else if (IS("fchmod"))
		done(fchmod(file(2), number(3)));
	else if (IS("chown"))
		done(fchownat(at, one, number(3), number(4), 0));
	else if (IS("utimens")) {
		struct timespec times[2] = { { number(3), number(4) }, { number(5), number(6) } };
		int result = utimensat(at, one, times, AT_SYMLINK_NOFOLLOW);
		result = result < 0 ? result : fstatat(at, one, &st, AT_SYMLINK_NOFOLLOW);
		if (result < 0)
			done(result);
		else
			say("%lld.%09ld %lld.%09ld", (long long)st.st_atim.tv_sec, st.st_atim.tv_nsec,
			    (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	} else if (IS("setxattr") || IS("getxattr") || IS("listxattr") || IS("removexattr")) {
		int fd = opened(one);
		if (fd < 0)
			done(-1);
		else if (IS("setxattr")) {
			memset(data, number(5), number(4));
			done(fsetxattr(fd, two, data, number(4), number(6)));
		} else if (IS("removexattr"))
			done(fremovexattr(fd, two));
		else {
			long count = IS("getxattr") ? fgetxattr(fd, two, data, MOST) : flistxattr(fd, data, MOST);
			if (count < 0)
				done(count);
			else
				runs(data, count);
		}
		if (fd >= 0)
			close(fd);
	} else if (IS("list"))
		list(one);
	else if (IS("empty"))
		empty(one);
	else if (IS("fill")) {
		/* So many files with names of so many bytes. */
		long result = 0;
		for (long n = 0; n < number(3) && result >= 0; n++) {
			char name[PATH_MAX];
			snprintf(name, sizeof name, "%s/%0*ld", one, (int)number(4), n);
			result = openat(at, name, O_WRONLY | O_CREAT | O_EXCL, 0644);
			if (result >= 0)
				close(result);
		}
		done(result < 0 ? result : number(3));
	} else if (IS("mread"))
		mapped(2, 0);
	else if (IS("mwrite"))
		mapped(2, 1);
	else if (IS("flock"))
		done(flock(file(2), number(3)));
	else if (IS("ofd"))
		locked(2, F_OFD_SETLK);
	else if (IS("posix"))
		locked(2, F_SETLK);
	else if (IS("seen"))
		seen(one, 3);
	else if (IS("tmpfile"))
		keep(2, openat(at, two, O_TMPFILE | O_RDWR | number(4), number(5)));
	else if (IS("name")) {
		char link[64];
		sprintf(link, "/proc/self/fd/%d", file(2));
		done(linkat(AT_FDCWD, link, at, two, AT_SYMLINK_FOLLOW));
	} else
		say("unknown");
}

int main(int argc, char **argv)
{
	static char line[1 << 16];
	if (argc != 3)
		return 2;
	umask(022);
	for (side = 0; side < 2; side++) {
		top[side] = open(argv[1 + side], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (top[side] < 0)
			return 3;
		for (int n = 0; n < FILES; n++)
			files[side][n] = -1;
	}
	while (fgets(line, sizeof line, stdin)) {
		int count = 0;
		for (char *word = strtok(line, " \n"); word && count < 15; word = strtok(NULL, " \n"))
			words[count++] = word;
		for (int n = count; n < 16; n++)
			words[n] = NULL;
		if (count < 2)
			return 4;
		for (side = 0; side < 2; side++) {
			length = 0;
			said[side][0] = 0;
			if (strcmp(words[0], side ? "first" : "second"))
				operate();
		}
		printf("%s\t%s\n", said[0], said[1]);
		fflush(stdout);
	}
	return 0;
}
