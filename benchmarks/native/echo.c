/* The static upstream: answers every infer request at once, with its own values, as the model would.

     echo PORT FACTS

   Rule of this file: it is what a Triton without a model would be, so that what stands before it is all that is
   measured. It never waits and computes nothing: the answer to a POST is the fact "answer" (its JSON part) and the
   first ECHO_BYTES of the request's tensor. Only loopback; requests with Content-Length only. A GET's answer is the
   fact of that path; the statistics are counted. FACTS is a file of records: NAME SPACE LENGTH LF BYTES LF. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { REQUEST_BYTES_MAX = 4 << 20, HEAD_BYTES_MAX = 16 * 1024, FACTS_MAX = 16, EVENTS_MAX = 256, ECHO_BYTES = 40 };
enum { ANSWER_BYTES_MAX = 8192 };

typedef struct {
    int fd;
    size_t got, room;
    char *bytes;
} Connection;

static struct { char name[128]; char *bytes; size_t length; } facts[FACTS_MAX];
static int facts_known;
static unsigned long answered;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    size_t length;
    while (facts_known < FACTS_MAX && fscanf(file, "%127s %zu", facts[facts_known].name, &length) == 2) {
        facts[facts_known].length = length;
        fgetc(file);
        facts[facts_known].bytes = malloc(length + 1);
        if (!facts[facts_known].bytes || fread(facts[facts_known].bytes, 1, length, file) != length) fail("facts");
        facts_known++;
    }
    fclose(file);
}

static int fact(const char *name, size_t length) {
    for (int index = 0; index < facts_known; index++)
        if (strlen(facts[index].name) == length && !memcmp(facts[index].name, name, length)) return index;
    return -1;
}

static size_t number(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; (line = memchr(line, '\n', (size_t)(end - line))) && ++line < end;)
        if (!strncasecmp(line, name, length)) return strtoul(line + length, NULL, 10);
    return 0;
}

static size_t write_plain(char *out, int status, const char *type, const char *body, size_t length) {
    size_t head = (size_t)sprintf(out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", status,
                                  status == 200 ? "OK" : "Not Found", type, length);
    memcpy(out + head, body, length);
    return head + length;
}

static size_t write_infer(char *out, int known, const char *tensor) {
    size_t length = facts[known].length;
    size_t head = (size_t)sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
                                  "Inference-Header-Content-Length: %zu\r\nContent-Length: %zu\r\n\r\n", length,
                                  length + ECHO_BYTES);
    memcpy(out + head, facts[known].bytes, length);
    memcpy(out + head + length, tensor, ECHO_BYTES);
    answered++;
    return head + length + ECHO_BYTES;
}

static size_t write_statistics(char *out) {
    char body[512];
    size_t length = (size_t)sprintf(body, "{\"model_stats\":[{\"name\":\"echo\",\"version\":\"1\","
                                    "\"inference_count\":%lu,\"execution_count\":%lu,\"inference_stats\":{"
                                    "\"success\":{\"count\":%lu,\"ns\":0},"
                                    "\"cache_hit\":{\"count\":0},\"cache_miss\":{\"count\":0}}}]}", answered, answered,
                                    answered);
    return write_plain(out, 200, "application/json", body, length);
}

/* The bytes of the request that was answered; 0 if it is not whole; -1 to close. */
static long answer(Connection *connection) {
    char out[ANSWER_BYTES_MAX], *bytes = connection->bytes;
    char *end = memmem(bytes, connection->got, "\r\n\r\n", 4);
    if (!end) return connection->got < HEAD_BYTES_MAX ? 0 : -1;
    size_t head = (size_t)(end + 4 - bytes), body = number(bytes, end + 2, "content-length:"), length;
    if (head + body > REQUEST_BYTES_MAX) return -1;
    if (connection->got < head + body) {
        if (connection->room < head + body) {
            connection->room = head + body;
            if (!(connection->bytes = realloc(bytes, connection->room))) fail("memory");
        }
        return 0;
    }
    char *path = memchr(bytes, ' ', head), *stop = NULL;
    if (path) stop = memchr(path + 1, ' ', head - (size_t)(path - bytes) - 1);
    if (!stop) return -1;
    size_t json = number(bytes, end + 2, "inference-header-content-length:");
    int known = fact("answer", 6);
    if (*bytes == 'P' && known >= 0 && json + ECHO_BYTES <= body) length = write_infer(out, known, bytes + head + json);
    else if (stop - path > 6 && !memcmp(stop - 6, "/stats", 6)) length = write_statistics(out);
    else if ((known = fact(path + 1, (size_t)(stop - path - 1))) >= 0)
        length = write_plain(out, 200, "application/json", facts[known].bytes, facts[known].length);
    else length = write_plain(out, 404, "application/json", "{\"error\":\"unknown\"}", 19);
    if (send(connection->fd, out, length, MSG_NOSIGNAL) != (ssize_t)length) return -1;
    return (long)(head + body);
}

static int serve(Connection *connection) {
    ssize_t done = recv(connection->fd, connection->bytes + connection->got, connection->room - connection->got, 0);
    if (done < 0 && errno == EAGAIN) return 1;
    if (done <= 0) return 0;
    connection->got += (size_t)done;
    for (;;) {
        long used = answer(connection);
        if (used < 0) return 0;
        if (used == 0) return 1;
        connection->got -= (size_t)used;
        memmove(connection->bytes, connection->bytes + used, connection->got);
    }
}

int main(int given, char **arguments) {
    if (given != 3) return 2;
    load(arguments[2]);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[1]))};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    int listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) fail("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS_MAX];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS_MAX, -1);
        for (int index = 0; index < ready; index++) {
            Connection *connection = events[index].data.ptr;
            if (connection) {
                if (serve(connection)) continue;
                close(connection->fd);
                free(connection->bytes);
                free(connection);
                continue;
            }
            int fd = accept(listener, NULL, NULL);
            if (fd < 0) continue;
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
            connection = calloc(1, sizeof *connection);
            if (!connection || !(connection->bytes = malloc(connection->room = HEAD_BYTES_MAX))) fail("memory");
            connection->fd = fd;
            event.data.ptr = connection;
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
