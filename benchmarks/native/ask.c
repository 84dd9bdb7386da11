/* The client: asks over keep-alive connections in a closed loop, and compares every byte of every answer.

   Rule of this file: it knows HTTP/1.1 with Content-Length and the layout of one question, and no server. Each
   connection remembers what it asked, so the right answer to somebody else's question is a wrong answer. One
   thread. All memory is taken before the first request; all of it is bounded by the numbers given.

   A question is head + body, in the file `question`; both may be varied from request to request:
     - 8 decimal digits at `digits_at` (a path's or a header's): a number below `heads`, in turn
     - 3 bytes at `serial_at` (little endian; of the tensor's first float): chosen by `pick`
   The right body is the file `answer` (8 digits of it at `answer_digits_at` are those of the question) followed by
   `echo` bytes of the question from `serial_at` on.

   `pick`: same    the serial `first`, always
           next    first, first + 1, ...: no serial twice
           some    uniformly one of the `count` from `first` on
           zipf    one of these, the k-th with a weight of k^-0.99; but a share `fresh` is new: it counts on from
                   `fresh_first`
   A run ends after `milliseconds`, or after `requests` if they are given; an answer that has not come after
   `patience` milliseconds never comes. `also=STATUS` allows one more status, each answer of which must hold every
   `needle` (given any number of times). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_BYTES_MAX = 64 * 1024, SHOWN_BYTES_MAX = 400, NEEDLES_MAX = 8, EVENTS_MAX = 256, SERIALS_MAX = 1 << 24 };
enum { FINE_BITS = 7, BUCKETS = (65 - FINE_BITS) << FINE_BITS }; /* a latency is told to 1 part in 128 */
#define SKEW 0.99

typedef struct {
    int fd, waits_for_room;
    uint32_t serial, number;
    char *request;
    size_t sent, got;
    uint64_t asked_at;
    char answer[ANSWER_BYTES_MAX];
} Connection;

static struct { char *bytes; size_t length; } question, answer;
static const char *pick = "same", *needles[NEEDLES_MAX];
static long port, connections = 1, milliseconds, requests, patience = 10000, digits_at = -1, heads = 1, serial_at = -1,
    first, fresh_first, count = 1, echo, answer_digits_at = -1, also, seed = 1;
static int needles_given;
static double fresh, *zipf;
static uint64_t chance, asked, fresh_asked, drawn;
static struct { uint64_t right, also, status, bytes, broken, timeout, late, received; } seen;
static uint64_t latencies[BUCKETS], longest;
static char shown[SHOWN_BYTES_MAX + 1];
static int over;

static void fail(const char *text, ...) {
    va_list parts;
    va_start(parts, text);
    vfprintf(stderr, text, parts);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t draw(void) { /* xorshift64*, Vigna 2016 */
    chance ^= chance >> 12, chance ^= chance << 25, chance ^= chance >> 27;
    return chance * 2685821657736338717ull;
}

static double unit(void) { return (double)(draw() >> 11) / 9007199254740992.0; }

/* ---- what is asked ---------------------------------------------------------------------------------- */

static uint32_t next_serial(void) {
    switch (*pick) {
    case 'n': return (uint32_t)(first + (long)drawn++);
    case 's': return (uint32_t)(pick[1] == 'a' ? first : first + (long)(draw() % (uint64_t)count));
    default:
        if (unit() < fresh) return (uint32_t)(fresh_first + (long)fresh_asked++);
        double mark = unit() * zipf[count - 1];
        long low = 0, high = count - 1;
        while (low < high) {
            long middle = (low + high) / 2;
            if (zipf[middle] < mark) low = middle + 1; else high = middle;
        }
        return (uint32_t)(first + low);
    }
}

static void write_digits(char *at, uint32_t number) {
    for (int place = 7; place >= 0; place--, number /= 10) at[place] = (char)('0' + number % 10);
}

static void prepare(Connection *connection) {
    connection->serial = next_serial() % SERIALS_MAX;
    connection->number = (uint32_t)(asked % (uint64_t)heads);
    if (digits_at >= 0) write_digits(connection->request + digits_at, connection->number);
    if (serial_at >= 0) memcpy(connection->request + serial_at, &connection->serial, 3);
    connection->sent = connection->got = 0;
    asked++;
}

/* ---- what is right ---------------------------------------------------------------------------------- */

static int right_body(const Connection *connection, const char *body, size_t length) {
    if (length != answer.length + (size_t)echo) return 0;
    if (answer_digits_at < 0) {
        if (memcmp(body, answer.bytes, answer.length)) return 0;
    } else {
        char digits[8];
        size_t at = (size_t)answer_digits_at;
        write_digits(digits, connection->number);
        if (memcmp(body, answer.bytes, at) || memcmp(body + at, digits, 8)) return 0;
        if (memcmp(body + at + 8, answer.bytes + at + 8, answer.length - at - 8)) return 0;
    }
    return !echo || !memcmp(body + answer.length, connection->request + serial_at, (size_t)echo);
}

static void show(const Connection *connection) {
    if (*shown) return;
    size_t length = connection->got < SHOWN_BYTES_MAX ? connection->got : SHOWN_BYTES_MAX;
    for (size_t index = 0; index < length; index++) {
        char byte = connection->answer[index];
        shown[index] = byte < ' ' || byte > '~' || byte == '"' || byte == '\\' ? ' ' : byte;
    }
}

static void judge(const Connection *connection, size_t head, size_t length) {
    const char *bytes = connection->answer;
    long status = strtol(bytes + 9, NULL, 10);
    seen.received += head + length;
    if (status == 200) {
        if (right_body(connection, bytes + head, length)) { seen.right++; return; }
        seen.bytes++;
    } else if (also && status == also) {
        int held = 0;
        for (int index = 0; index < needles_given; index++)
            held += memmem(bytes, head + length, needles[index], strlen(needles[index])) != NULL;
        if (held == needles_given) { seen.also++; return; }
        seen.bytes++;
    } else seen.status++;
    show(connection);
}

/* Bytes of the head with its blank line and of the body; 0: not there yet; -1: not to be read. */
static long measure(const Connection *connection, size_t *length) {
    const char *bytes = connection->answer, *end = memmem(bytes, connection->got, "\r\n\r\n", 4);
    if (!end) return connection->got < ANSWER_BYTES_MAX ? 0 : -1;
    if (end - bytes < 12 || memcmp(bytes, "HTTP/1.1 ", 9)) return -1;
    for (const char *line = memchr(bytes, '\n', (size_t)(end - bytes)); line; ) {
        if (!strncasecmp(++line, "content-length:", 15)) {
            *length = strtoul(line + 15, NULL, 10);
            size_t head = (size_t)(end + 4 - bytes);
            return head + *length <= ANSWER_BYTES_MAX ? (long)head : -1;
        }
        line = memchr(line, '\n', (size_t)(end + 2 - line));
        if (line && line >= end) break;
    }
    return -1;
}

/* ---- connections ------------------------------------------------------------------------------------ */

static int poller;
static long alive;

static void drop(Connection *connection, uint64_t *counter) {
    show(connection);
    (*counter)++;
    close(connection->fd);
    connection->fd = -1;
    alive--;
}

static void watch(Connection *connection, int operation, int events) {
    struct epoll_event event = {.events = (uint32_t)events, .data.ptr = connection};
    if (epoll_ctl(poller, operation, connection->fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

static void send_rest(Connection *connection) {
    ssize_t done = send(connection->fd, connection->request + connection->sent, question.length - connection->sent,
                        MSG_NOSIGNAL);
    if (done < 0 && errno != EAGAIN) { drop(connection, &seen.broken); return; }
    if (done > 0) connection->sent += (size_t)done;
    int waits = connection->sent < question.length;
    if (waits != connection->waits_for_room) {
        watch(connection, EPOLL_CTL_MOD, EPOLLIN | (waits ? EPOLLOUT : 0));
        connection->waits_for_room = waits;
    }
}

static void ask(Connection *connection, uint64_t time) {
    if (over || (requests && asked == (uint64_t)requests)) {
        close(connection->fd);
        connection->fd = -1;
        alive--;
        return;
    }
    prepare(connection);
    connection->asked_at = time;
    send_rest(connection);
}

static void note(uint64_t nanoseconds) {
    if (nanoseconds > longest) longest = nanoseconds;
    int top = nanoseconds < (1u << FINE_BITS) ? FINE_BITS : 63 - __builtin_clzll(nanoseconds);
    latencies[((uint64_t)(top - FINE_BITS) << FINE_BITS) + (nanoseconds >> (top - FINE_BITS))]++;
}

static void receive(Connection *connection) {
    ssize_t done = recv(connection->fd, connection->answer + connection->got, ANSWER_BYTES_MAX - connection->got, 0);
    if (done < 0 && errno == EAGAIN) return;
    if (done <= 0) { drop(connection, &seen.broken); return; }
    connection->got += (size_t)done;
    size_t length = 0;
    long head = measure(connection, &length);
    if (head == 0 || (head > 0 && connection->got < (size_t)head + length)) return;
    /* An answer before the question was all sent, or more bytes than one answer, cannot be read on from. */
    if (head < 0 || connection->got > (size_t)head + length || connection->sent < question.length) {
        drop(connection, &seen.broken);
        return;
    }
    uint64_t time = now();
    note(time - connection->asked_at);
    if (over) seen.late++;
    judge(connection, (size_t)head, length);
    ask(connection, time);
}

static void open_one(Connection *connection) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    int yes = 1;
    if (connection->fd < 0 || connect(connection->fd, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect to port %ld: %s", port, strerror(errno));
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(connection->fd, F_SETFL, fcntl(connection->fd, F_GETFL) | O_NONBLOCK);
    watch(connection, EPOLL_CTL_ADD, EPOLLIN);
    alive++;
}

static void cut_silent(Connection *all, uint64_t time) {
    for (long index = 0; index < connections; index++)
        if (all[index].fd >= 0 && time - all[index].asked_at > (uint64_t)patience * 1000000u)
            drop(&all[index], &seen.timeout);
}

/* ---- the run ---------------------------------------------------------------------------------------- */

static void load(const char *path, char **bytes, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("%s: %s", path, strerror(errno));
    fseek(file, 0, SEEK_END);
    *length = (size_t)ftell(file);
    rewind(file);
    *bytes = malloc(*length + 1);
    if (!*bytes || fread(*bytes, 1, *length, file) != *length) fail("%s: cannot be read", path);
    fclose(file);
}

static void configure(int given, char **arguments) {
    struct { const char *name; long *value; } numbers[] = {
        {"port", &port}, {"connections", &connections}, {"milliseconds", &milliseconds}, {"requests", &requests},
        {"patience", &patience},
        {"digits_at", &digits_at}, {"heads", &heads}, {"serial_at", &serial_at}, {"first", &first},
        {"fresh_first", &fresh_first}, {"count", &count}, {"echo", &echo},
        {"answer_digits_at", &answer_digits_at}, {"also", &also}, {"seed", &seed}};
    for (int index = 1; index < given; index++) {
        char *value = strchr(arguments[index], '=');
        if (!value) fail("%s: not name=value", arguments[index]);
        *value++ = 0;
        const char *name = arguments[index];
        int known = 0;
        for (size_t number = 0; number < sizeof numbers / sizeof *numbers; number++)
            if (!strcmp(name, numbers[number].name)) *numbers[number].value = strtol(value, NULL, 10), known = 1;
        if (!strcmp(name, "question")) load(value, &question.bytes, &question.length), known = 1;
        if (!strcmp(name, "answer")) load(value, &answer.bytes, &answer.length), known = 1;
        if (!strcmp(name, "pick")) pick = value, known = 1;
        if (!strcmp(name, "fresh")) fresh = strtod(value, NULL), known = 1;
        if (!strcmp(name, "needle") && needles_given < NEEDLES_MAX) needles[needles_given++] = value, known = 1;
        if (!known) fail("%s: nothing here is called so", name);
    }
    long length = (long)question.length;
    if (!length || !answer.bytes || port < 1 || connections < 1 || heads < 1 || count < 1 || !strchr("nsz", *pick) ||
        digits_at + 8 > length || serial_at + echo > length || serial_at + 3 > length || (echo && serial_at < 0) ||
        answer_digits_at + 8 > (long)answer.length || milliseconds < 1)
        fail("the numbers do not fit each other or the question");
}

static void weigh(void) {
    zipf = malloc((size_t)count * sizeof *zipf);
    double sum = 0;
    for (long rank = 0; rank < count; rank++) zipf[rank] = sum += pow((double)(rank + 1), -SKEW);
}

static double percentile(double share) {
    uint64_t all = 0, passed = 0;
    for (int index = 0; index < BUCKETS; index++) all += latencies[index];
    for (int index = 0; index < BUCKETS; index++) {
        passed += latencies[index];
        if (all && (double)passed >= share * (double)all) {
            int shift = index >> FINE_BITS ? (index >> FINE_BITS) - 1 : 0;
            uint64_t low = (uint64_t)(shift ? (index & ((1 << FINE_BITS) - 1)) | (1 << FINE_BITS) : index) << shift;
            return (double)low / 1e3;
        }
    }
    return 0;
}

static double busy(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

int main(int given, char **arguments) {
    configure(given, arguments);
    chance = (uint64_t)seed * 0x9e3779b97f4a7c15ull | 1;
    if (*pick == 'z') weigh();
    Connection *all = calloc((size_t)connections, sizeof *all);
    int varies = digits_at >= 0 || *pick != 's' || pick[1] != 'a';
    poller = epoll_create1(0);
    if (!all || poller < 0) fail("no memory, or no epoll");
    for (long index = 0; index < connections; index++) {
        all[index].request = question.bytes;
        if (varies && index) { /* who varies it needs one of its own */
            all[index].request = malloc(question.length);
            if (!all[index].request) fail("no memory");
            memcpy(all[index].request, question.bytes, question.length);
        }
        open_one(&all[index]);
    }
    double busy_before = busy();
    uint64_t began = now(), end = began + (uint64_t)milliseconds * 1000000u, looked = began, ended = 0;
    for (long index = 0; index < connections; index++) ask(&all[index], began);
    uint64_t in_time = 0;
    double used = 0;
    struct epoll_event events[EVENTS_MAX];
    while (alive > 0) {
        int ready = epoll_wait(poller, events, EVENTS_MAX, 100);
        for (int index = 0; index < ready; index++) {
            Connection *connection = events[index].data.ptr;
            if (connection->fd >= 0 && events[index].events & EPOLLOUT) send_rest(connection);
            if (connection->fd >= 0 && events[index].events & ~(uint32_t)EPOLLOUT) receive(connection);
        }
        uint64_t time = now();
        if (!over && !requests && time >= end) { /* nothing more is asked; what is under way is still judged */
            over = 1, ended = time, used = busy() - busy_before;
            in_time = seen.right + seen.also + seen.status + seen.bytes;
        }
        if (time - looked > 500000000u) cut_silent(all, looked = time);
    }
    if (!ended) {
        ended = now(), used = busy() - busy_before;
        in_time = seen.right + seen.also + seen.status + seen.bytes;
    }
    printf("RESULT {\"requests\":%lu,\"late\":%lu,\"fresh\":%lu,\"microseconds\":%.0f,\"client_microseconds\":%.0f,"
           "\"bytes\":%lu,\"p50\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"longest\":%.1f,\"also\":%lu,"
           "\"wrong_status\":%lu,\"wrong_bytes\":%lu,\"broken\":%lu,\"timeout\":%lu,\"shown\":\"%s\"}\n",
           in_time, seen.late, *pick == 'z' ? fresh_asked : 0, (double)(ended - began) / 1e3, used, seen.received,
           percentile(0.5), percentile(0.99), percentile(0.999), (double)longest / 1e3, seen.also, seen.status,
           seen.bytes, seen.broken, seen.timeout, shown);
    return 0;
}
