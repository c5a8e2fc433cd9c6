// Faults of the operating system, on demand: preloaded into every process of a run (LD_PRELOAD), it counts what they do to
// files below one folder and at a chosen operation does a chosen thing. What to do, and the counts, stand in a small file that
// all processes map (CHAOS_CONTROL); tests/chaos/shim.py writes it and has the same layout.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { READ, WRITE, MAKE, NAME, SYNC, OPERATIONS };  // MAKE: a new file or folder; NAME: rename, link, unlink, truncate
enum { PARENT, WORKER, RANK, ROLES };
enum { NOTHING, FAIL, TEAR, SIGNAL_SELF, SIGNAL_PARENT, MOVE_CLOCK };
enum { ONCE, ALWAYS, SAME_FILE };  // how long a failure lasts

struct control {
    uint32_t active;      // whether operations are counted
    uint32_t operations;  // bit set of those that count towards `at`
    uint32_t roles;       // bit set of the processes whose operations do
    uint32_t action;
    uint32_t lasts;
    int32_t error;   // errno of a failure
    int32_t signal;  // 0 for a tear that fails in place of killing
    volatile int32_t parent;  // process id
    uint64_t at;     // the operation, counted from 1, that the action befalls
    int64_t seconds; // by which the clock goes back
    uint64_t met;
    uint64_t counts[ROLES][OPERATIONS];
    uint32_t fired;
    int32_t victim;  // process id of who made the operation
    char root[PATH_MAX];
    char among[256];       // only operations on files whose path contains this count towards `at`
    char place[PATH_MAX];  // the file it was made on
};

static struct control *control;

#define REAL(name)                                                   \
    static __typeof__(name) *real;                                   \
    if (real == NULL) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("CHAOS_CONTROL");
    if (path == NULL) return;
    __typeof__(open) *really_open = (__typeof__(open) *)dlsym(RTLD_NEXT, "open");
    int file = really_open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) control = mapped;
}

static int role(void) {
    if (getenv("RANK") != NULL) return RANK;
    return getenv("CHAOS_WORKER") != NULL ? WORKER : PARENT;
}

static int is_below_root(const char *path) {
    size_t length = strlen(control->root);
    return length != 0 && strncmp(path, control->root, length) == 0 && path[length] == '/';
}

static int is_to_fail(const char *path) {
    if (control->lasts == ALWAYS) return 1;
    return control->lasts == SAME_FILE && strcmp(path, control->place) == 0;
}

// What befalls an operation on `path`: NOTHING, FAIL (errno is set) or TEAR. A signal is sent from here.
static int judge(int operation, const char *path) {
    if (!is_below_root(path)) return NOTHING;
    int who = role();
    __atomic_add_fetch(&control->counts[who][operation], 1, __ATOMIC_RELAXED);
    if (control->action == NOTHING || !(control->operations >> operation & 1)) return NOTHING;
    int is_failing = control->action == FAIL || (control->action == TEAR && control->signal == 0);
    if (__atomic_load_n(&control->fired, __ATOMIC_ACQUIRE)) {  // a full disk is full for all
        if (!is_failing || !is_to_fail(path)) return NOTHING;
        errno = control->error;
        return FAIL;
    }
    if (!(control->roles >> who & 1) || strstr(path, control->among) == NULL) return NOTHING;
    if (__atomic_add_fetch(&control->met, 1, __ATOMIC_ACQ_REL) != control->at) return NOTHING;
    snprintf(control->place, sizeof control->place, "%s", path);
    control->victim = getpid();
    __atomic_store_n(&control->fired, 1, __ATOMIC_RELEASE);
    switch (control->action) {
    case FAIL: errno = control->error; return FAIL;
    case TEAR: return TEAR;
    case SIGNAL_SELF: kill(getpid(), control->signal); return NOTHING;
    case SIGNAL_PARENT:
        while (control->parent == 0) usleep(1000);  // whose number is not known yet
        kill(control->parent, control->signal);
        return NOTHING;
    default: return NOTHING;
    }
}

static int is_active(void) { return control != NULL && __atomic_load_n(&control->active, __ATOMIC_ACQUIRE); }

static int at_descriptor(int operation, int file) {
    if (!is_active()) return NOTHING;
    int before = errno;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0) return NOTHING;
    path[length] = '\0';
    return judge(operation, path);
}

static int at_path(int operation, int folder, const char *name) {
    if (!is_active() || name == NULL) return NOTHING;
    if (name[0] == '/') return judge(operation, name);
    int before = errno;
    char link[64], path[PATH_MAX];
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0 || length + strlen(name) + 2 > sizeof path) return NOTHING;
    snprintf(path + length, sizeof path - length, "/%s", name);
    return judge(operation, path);
}

// ------------------------------------------------------------------------------------------ opening

static int opening(int folder, const char *path, int flags) {
    struct stat state;
    int is_new = flags & O_CREAT && fstatat(folder, path, &state, 0) != 0;
    return at_path(is_new ? MAKE : (flags & O_ACCMODE) == O_RDONLY ? READ : NAME, folder, path);
}

#define MODE(flags)                              \
    mode_t mode = 0;                             \
    if (flags & (O_CREAT | __O_TMPFILE)) {       \
        va_list arguments;                       \
        va_start(arguments, flags);              \
        mode = va_arg(arguments, mode_t);        \
        va_end(arguments);                       \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags);
    return is_active() && opening(AT_FDCWD, path, flags) == FAIL ? -1 : real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags);
    return is_active() && opening(AT_FDCWD, path, flags) == FAIL ? -1 : real(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    REAL(openat);
    MODE(flags);
    return is_active() && opening(folder, path, flags) == FAIL ? -1 : real(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64);
    MODE(flags);
    return is_active() && opening(folder, path, flags) == FAIL ? -1 : real(folder, path, flags, mode);
}

static int stream_flags(const char *mode) { return mode[0] == 'r' && strchr(mode, '+') == NULL ? O_RDONLY : O_WRONLY | O_CREAT; }

FILE *fopen(const char *path, const char *mode) {
    REAL(fopen);
    return is_active() && opening(AT_FDCWD, path, stream_flags(mode)) == FAIL ? NULL : real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    return is_active() && opening(AT_FDCWD, path, stream_flags(mode)) == FAIL ? NULL : real(path, mode);
}

// ------------------------------------------------------------------------------------------ reading

#define READING(type, name, parameters, arguments)                          \
    type name parameters {                                                  \
        REAL(name);                                                         \
        return at_descriptor(READ, file) == FAIL ? -1 : real arguments;     \
    }

READING(ssize_t, read, (int file, void *buffer, size_t bytes), (file, buffer, bytes))
READING(ssize_t, pread, (int file, void *buffer, size_t bytes, off_t offset), (file, buffer, bytes, offset))
READING(ssize_t, pread64, (int file, void *buffer, size_t bytes, off64_t offset), (file, buffer, bytes, offset))
READING(ssize_t, readv, (int file, const struct iovec *parts, int count), (file, parts, count))

// ------------------------------------------------------------------------------------------ writing

// After a torn write: the process is dead, or its next write fails.
static ssize_t torn(ssize_t written) {
    if (control->signal != 0) kill(getpid(), control->signal);
    return written;
}

#define WRITING(type, name, parameters, arguments)                 \
    type name parameters {                                         \
        REAL(name);                                                \
        switch (at_descriptor(WRITE, file)) {                      \
        case FAIL: return -1;                                      \
        case TEAR: {                                               \
            if (bytes > 1) bytes /= 2;                             \
            return torn(real arguments);                           \
        }                                                          \
        default: return real arguments;                            \
        }                                                          \
    }

WRITING(ssize_t, write, (int file, const void *buffer, size_t bytes), (file, buffer, bytes))
WRITING(ssize_t, pwrite, (int file, const void *buffer, size_t bytes, off_t offset), (file, buffer, bytes, offset))
WRITING(ssize_t, pwrite64, (int file, const void *buffer, size_t bytes, off64_t offset), (file, buffer, bytes, offset))
WRITING(ssize_t, sendfile, (int file, int source, off_t *offset, size_t bytes), (file, source, offset, bytes))
WRITING(ssize_t, sendfile64, (int file, int source, off64_t *offset, size_t bytes), (file, source, offset, bytes))
WRITING(ssize_t, copy_file_range, (int source, off64_t *from, int file, off64_t *to, size_t bytes, unsigned int flags),
        (source, from, file, to, bytes, flags))
WRITING(ssize_t, writev, (int file, const struct iovec *parts, int bytes), (file, parts, bytes))  // half of the parts

// ------------------------------------------------------------------------------------------ names

#define NAMING(operation, name, parameters, arguments, folder, path)                    \
    int name parameters {                                                               \
        REAL(name);                                                                     \
        return at_path(operation, folder, path) == FAIL ? -1 : real arguments;          \
    }

NAMING(NAME, rename, (const char *from, const char *to), (from, to), AT_FDCWD, to)
NAMING(NAME, renameat, (int above, const char *from, int below, const char *to), (above, from, below, to), below, to)
NAMING(NAME, link, (const char *from, const char *to), (from, to), AT_FDCWD, to)
NAMING(NAME, linkat, (int above, const char *from, int below, const char *to, int flags), (above, from, below, to, flags), below, to)
NAMING(NAME, unlink, (const char *path), (path), AT_FDCWD, path)
NAMING(NAME, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder, path)
NAMING(NAME, rmdir, (const char *path), (path), AT_FDCWD, path)
NAMING(MAKE, mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
NAMING(MAKE, mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), folder, path)

int ftruncate(int file, off_t length) {
    REAL(ftruncate);
    return at_descriptor(NAME, file) == FAIL ? -1 : real(file, length);
}

int ftruncate64(int file, off64_t length) {
    REAL(ftruncate64);
    return at_descriptor(NAME, file) == FAIL ? -1 : real(file, length);
}

int fsync(int file) {
    REAL(fsync);
    return at_descriptor(SYNC, file) == FAIL ? -1 : real(file);
}

// ------------------------------------------------------------------------------------------ the clock

static int64_t seconds_back(void) {
    return is_active() && control->action == MOVE_CLOCK && __atomic_load_n(&control->fired, __ATOMIC_ACQUIRE) ? control->seconds : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec -= seconds_back();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    REAL(gettimeofday);
    int result = real(now, zone);
    if (result == 0) now->tv_sec -= seconds_back();
    return result;
}

time_t time(time_t *where) {
    REAL(time);
    time_t now = real(NULL) - seconds_back();
    if (where != NULL) *where = now;
    return now;
}
