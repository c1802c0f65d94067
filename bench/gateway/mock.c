/* A mock worker that costs as little as possible: one thread, epoll, answers held in memory.
 *
 *     mock PORT
 *
 * Speaks enough HTTP/1.1 for the benchmark: keep-alive, Content-Length bodies. GET /health says ok. A request whose
 * body holds "stream":true is answered with CHUNKS server-sent events, a usage event where the body asks for it and
 * [DONE]; any other with one chat completion. Requests are taken one at a time per connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER (64 * 1024)
#define CONNECTIONS 8192
#define CHUNKS 256

typedef struct {
    char in[BUFFER];
    size_t have;
    const char *out;
    size_t left;
} connection;

static connection *table[CONNECTIONS];
static char whole[2048], health[256], *stream_plain, *stream_usage;
static size_t whole_size, health_size, stream_plain_size, stream_usage_size;

static const char USAGE[] = "\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":%d,\"total_tokens\":%d,"
                            "\"prompt_tokens_details\":{\"cached_tokens\":16}},"
                            "\"baseload\":{\"queue_ns\":1000,\"prefill_ns\":2000,\"decode_ns\":3000}";

static size_t event(char *at, const char *json) {
    size_t size = strlen(json) + 8;
    return (size_t)sprintf(at, "%zx\r\ndata: %s\n\n\r\n", size, json);
}

static char *make_stream(int with_usage, size_t *size) {
    char *all = malloc(CHUNKS * 400 + 4096), *at = all, json[1024], used[512];
    at += sprintf(at, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                      "transfer-encoding: chunked\r\n\r\n");
    for (int i = 0; i < CHUNKS; i++) {
        sprintf(json,
                "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"mock\","
                "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,"
                "\"finish_reason\":null}]}");
        at += event(at, json);
    }
    if (with_usage) {
        sprintf(used, USAGE, CHUNKS, CHUNKS + 20);
        sprintf(json,
                "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"mock\","
                "\"choices\":[],%s}", used);
        at += event(at, json);
    }
    at += event(at, "[DONE]");
    at += sprintf(at, "0\r\n\r\n");
    *size = (size_t)(at - all);
    return all;
}

static void make_answers(void) {
    char body[1024], used[512];
    sprintf(used, USAGE, 8, 28);
    int size = sprintf(body,
                       "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"mock\","
                       "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Scale it to zero "
                       "by leaving it alone.\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],%s}",
                       used);
    whole_size = (size_t)sprintf(
        whole, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", size, body);
    health_size = (size_t)sprintf(health, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15"
                                          "\r\n\r\n{\"status\":\"ok\"}");
    stream_plain = make_stream(0, &stream_plain_size);
    stream_usage = make_stream(1, &stream_usage_size);
}

static void drop(int poll, int fd) {
    epoll_ctl(poll, EPOLL_CTL_DEL, fd, NULL);
    close(fd);
    free(table[fd]);
    table[fd] = NULL;
}

/* Send what is left; 0 when the connection is gone. */
static int push(int poll, int fd, connection *c) {
    while (c->left) {
        ssize_t sent = send(fd, c->out, c->left, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return 0;
            struct epoll_event wait = {.events = EPOLLIN | EPOLLOUT, .data.fd = fd};
            epoll_ctl(poll, EPOLL_CTL_MOD, fd, &wait);
            return 1;
        }
        c->out += sent;
        c->left -= (size_t)sent;
    }
    return 1;
}

/* Answer one whole request in the buffer, if there is one; 0 when the connection is to be dropped. */
static int answer(int poll, int fd, connection *c) {
    if (c->left) return 1;
    char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
    if (!end) return c->have < BUFFER;
    size_t head = (size_t)(end - c->in) + 4, length = 0;
    char keep = c->in[head - 1];
    c->in[head - 1] = 0;
    char *field = strcasestr(c->in, "\ncontent-length:");
    if (field) length = strtoul(field + 16, NULL, 10);
    int is_get = strncmp(c->in, "GET ", 4) == 0;
    c->in[head - 1] = keep;
    if (head + length > BUFFER) return 0;
    if (c->have < head + length) return 1;
    if (is_get) {
        c->out = health, c->left = health_size;
    } else if (memmem(c->in + head, length, "\"stream\":true", 13)) {
        int usage = memmem(c->in + head, length, "\"include_usage\":true", 20) != NULL;
        c->out = usage ? stream_usage : stream_plain;
        c->left = usage ? stream_usage_size : stream_plain_size;
    } else {
        c->out = whole, c->left = whole_size;
    }
    c->have -= head + length;
    memmove(c->in, c->in + head + length, c->have);
    return push(poll, fd, c);
}

static void accept_all(int poll, int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), one = 1;
        if (fd < 0) return;
        if (fd >= CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        table[fd] = calloc(1, sizeof(connection));
        struct epoll_event add = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &add);
    }
}

static int serve_one(int poll, int fd, unsigned events) {
    connection *c = table[fd];
    if (events & EPOLLOUT) {
        if (!push(poll, fd, c)) return 0;
        if (!c->left) {
            struct epoll_event back = {.events = EPOLLIN, .data.fd = fd};
            epoll_ctl(poll, EPOLL_CTL_MOD, fd, &back);
        }
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ssize_t got = recv(fd, c->in + c->have, BUFFER - c->have, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN)) return 0;
        if (got > 0) c->have += (size_t)got;
    }
    return answer(poll, fd, c);
}

int main(int argc, char **argv) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    at.sin_port = htons((unsigned short)(argc > 1 ? atoi(argv[1]) : 0));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1024)) {
        perror("mock");
        return 1;
    }
    getsockname(listener, (struct sockaddr *)&at, &size);
    make_answers();
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    int poll = epoll_create1(0);
    struct epoll_event add = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &add);
    for (;;) {
        int count = epoll_wait(poll, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) accept_all(poll, listener);
            else if (table[fd] && !serve_one(poll, fd, ready[i].events)) drop(poll, fd);
        }
    }
}
