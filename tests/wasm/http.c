// An HTTP server: a component of the world `http`. By the path:
//   /env/NAME   answers with a variable's value
//   /config/NAME answers with a value of the configuration, and of how many it is one
//   /fetch/URL  asks another server (http://HOST/PATH) and answers with its status and body
//   /fetchs/URL the same by TLS
//   /echo       answers with the request's body
//   /count      answers with how many requests this instance has had
//   /log/TEXT   writes to standard error
//   /trap       executes an invalid instruction
//   /begun/N    begins an answer, writes N bytes of it, and executes an invalid instruction
//   /spin       computes for ever
//   /memory     takes all memory it can get, and answers how much that was, in MiB
//   else        answers "hello from wasm" and the path
#include "http.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int requests;

static void set_string(http_string_t *to, const char *text) {
  to->ptr = (uint8_t *)text;
  to->len = strlen(text);
}

static bool write_all(wasi_io_streams_borrow_output_stream_t to, const uint8_t *bytes, size_t length) {
  // The largest piece that one call takes.
  for (size_t at = 0; at < length;) {
    size_t piece = length - at < 4096 ? length - at : 4096;
    http_list_u8_t list = {(uint8_t *)bytes + at, piece};
    wasi_io_streams_stream_error_t error;
    if (!wasi_io_streams_method_output_stream_blocking_write_and_flush(to, &list, &error)) return false;
    at += piece;
  }
  return true;
}

static void copy_stream(wasi_io_streams_own_input_stream_t from, wasi_io_streams_borrow_output_stream_t to) {
  wasi_io_streams_stream_error_t error;
  http_list_u8_t got;
  while (wasi_io_streams_method_input_stream_blocking_read(wasi_io_streams_borrow_input_stream(from), 65536, &got, &error)) {
    bool written = write_all(to, got.ptr, got.len);
    http_list_u8_free(&got);
    if (!written) break;
  }
  wasi_io_streams_input_stream_drop_own(from);
}

static wasi_http_types_own_outgoing_response_t new_response(uint16_t status) {
  wasi_http_types_own_outgoing_response_t response =
      wasi_http_types_constructor_outgoing_response(wasi_http_types_constructor_fields());
  wasi_http_types_method_outgoing_response_set_status_code(wasi_http_types_borrow_outgoing_response(response), status);
  return response;
}

// Sends the head and gives the body's stream.
static wasi_http_types_own_outgoing_body_t begin(wasi_http_types_own_response_outparam_t out, uint16_t status,
                                                 wasi_io_streams_own_output_stream_t *stream) {
  wasi_http_types_own_outgoing_response_t response = new_response(status);
  wasi_http_types_own_outgoing_body_t body;
  wasi_http_types_method_outgoing_response_body(wasi_http_types_borrow_outgoing_response(response), &body);
  wasi_http_types_result_own_outgoing_response_error_code_t result = {.is_err = false, .val.ok = response};
  wasi_http_types_static_response_outparam_set(out, &result);
  wasi_http_types_method_outgoing_body_write(wasi_http_types_borrow_outgoing_body(body), stream);
  return body;
}

static void finish(wasi_http_types_own_outgoing_body_t body, wasi_io_streams_own_output_stream_t stream) {
  wasi_http_types_error_code_t error;
  wasi_io_streams_output_stream_drop_own(stream);
  wasi_http_types_static_outgoing_body_finish(body, NULL, &error);
}

static void answer(wasi_http_types_own_response_outparam_t out, uint16_t status, const char *text) {
  wasi_io_streams_own_output_stream_t stream;
  wasi_http_types_own_outgoing_body_t body = begin(out, status, &stream);
  write_all(wasi_io_streams_borrow_output_stream(stream), (const uint8_t *)text, strlen(text));
  finish(body, stream);
}

static char *variable(const char *name) {
  http_list_tuple2_string_string_t all;
  wasi_cli_environment_get_environment(&all);
  for (size_t i = 0; i < all.len; i++)
    if (all.ptr[i].f0.len == strlen(name) && !memcmp(all.ptr[i].f0.ptr, name, all.ptr[i].f0.len))
      return strndup((char *)all.ptr[i].f1.ptr, all.ptr[i].f1.len);
  return strdup("(not set)");
}

static void configured(wasi_http_types_own_response_outparam_t out, const char *name) {
  http_string_t key;
  http_option_string_t value;
  http_list_tuple2_string_string_t all;
  wasi_config_store_error_t error;
  char text[512];
  set_string(&key, name);
  if (!wasi_config_store_get(&key, &value, &error) || !wasi_config_store_get_all(&all, &error)) {
    answer(out, 500, "no configuration\n");
    return;
  }
  if (!value.is_some) set_string(&value.val, "(not set)");
  snprintf(text, sizeof text, "%.*s of %s\n", (int)value.val.len, value.val.ptr, all.len > 1 ? "many" : "few");
  answer(out, 200, text);
}

static void fetch(wasi_http_types_own_response_outparam_t out, uint8_t scheme_tag, const char *host_and_path) {
  char host[256];
  size_t length = strcspn(host_and_path, "/");
  if (length >= sizeof host) length = sizeof host - 1;
  memcpy(host, host_and_path, length);
  host[length] = 0;
  wasi_http_types_own_outgoing_request_t request =
      wasi_http_types_constructor_outgoing_request(wasi_http_types_constructor_fields());
  wasi_http_types_borrow_outgoing_request_t borrowed = wasi_http_types_borrow_outgoing_request(request);
  http_string_t authority, path;
  set_string(&authority, host);
  set_string(&path, host_and_path[length] ? host_and_path + length : "/");
  wasi_http_types_scheme_t scheme = {.tag = scheme_tag};
  wasi_http_types_method_outgoing_request_set_scheme(borrowed, &scheme);
  wasi_http_types_method_outgoing_request_set_authority(borrowed, &authority);
  wasi_http_types_method_outgoing_request_set_path_with_query(borrowed, &path);
  wasi_http_types_own_future_incoming_response_t future;
  wasi_http_types_error_code_t error;
  if (!wasi_http_outgoing_handler_handle(request, NULL, &future, &error)) {
    answer(out, 502, "not sent\n");
    return;
  }
  wasi_http_types_own_pollable_t ready =
      wasi_http_types_method_future_incoming_response_subscribe(wasi_http_types_borrow_future_incoming_response(future));
  wasi_io_poll_method_pollable_block(wasi_io_poll_borrow_pollable(ready));
  wasi_io_poll_pollable_drop_own(ready);
  wasi_http_types_result_result_own_incoming_response_error_code_void_t got;
  wasi_http_types_method_future_incoming_response_get(wasi_http_types_borrow_future_incoming_response(future), &got);
  if (got.is_err || got.val.ok.is_err) {
    char text[64];
    snprintf(text, sizeof text, "no answer: error %d\n", got.is_err ? -1 : got.val.ok.val.err.tag);
    answer(out, 502, text);
    return;
  }
  wasi_http_types_own_incoming_response_t response = got.val.ok.val.ok;
  wasi_http_types_borrow_incoming_response_t answered = wasi_http_types_borrow_incoming_response(response);
  wasi_http_types_own_incoming_body_t from;
  wasi_io_streams_own_input_stream_t input;
  wasi_io_streams_own_output_stream_t output;
  uint16_t status = wasi_http_types_method_incoming_response_status(answered);
  wasi_http_types_method_incoming_response_consume(answered, &from);
  wasi_http_types_method_incoming_body_stream(wasi_http_types_borrow_incoming_body(from), &input);
  wasi_http_types_own_outgoing_body_t body = begin(out, status, &output);
  copy_stream(input, wasi_io_streams_borrow_output_stream(output));
  finish(body, output);
}

static void echo(wasi_http_types_own_incoming_request_t request, wasi_http_types_own_response_outparam_t out) {
  wasi_http_types_own_incoming_body_t from;
  wasi_io_streams_own_input_stream_t input;
  wasi_io_streams_own_output_stream_t output;
  wasi_http_types_method_incoming_request_consume(wasi_http_types_borrow_incoming_request(request), &from);
  wasi_http_types_method_incoming_body_stream(wasi_http_types_borrow_incoming_body(from), &input);
  wasi_http_types_own_outgoing_body_t body = begin(out, 200, &output);
  copy_stream(input, wasi_io_streams_borrow_output_stream(output));
  finish(body, output);
}

static void say(const char *text) {
  wasi_cli_stderr_own_output_stream_t stream = wasi_cli_stderr_get_stderr();
  write_all(wasi_io_streams_borrow_output_stream(stream), (const uint8_t *)text, strlen(text));
  write_all(wasi_io_streams_borrow_output_stream(stream), (const uint8_t *)"\n", 1);
}

void exports_wasi_http_incoming_handler_handle(exports_wasi_http_incoming_handler_own_incoming_request_t request,
                                               exports_wasi_http_incoming_handler_own_response_outparam_t out) {
  http_string_t given;
  char path[1024] = "/", text[1100];
  requests++;
  if (wasi_http_types_method_incoming_request_path_with_query(wasi_http_types_borrow_incoming_request(request), &given)) {
    size_t length = given.len < sizeof path ? given.len : sizeof path - 1;
    memcpy(path, given.ptr, length);
    path[length] = 0;
  }
  if (!strncmp(path, "/env/", 5)) {
    snprintf(text, sizeof text, "%s\n", variable(path + 5));
    answer(out, 200, text);
  } else if (!strncmp(path, "/config/", 8)) {
    configured(out, path + 8);
  } else if (!strncmp(path, "/fetch/", 7)) {
    fetch(out, WASI_HTTP_TYPES_SCHEME_HTTP, path + 7);
  } else if (!strncmp(path, "/fetchs/", 8)) {
    fetch(out, WASI_HTTP_TYPES_SCHEME_HTTPS, path + 8);
  } else if (!strcmp(path, "/echo")) {
    echo(request, out);
  } else if (!strcmp(path, "/count")) {
    snprintf(text, sizeof text, "%d\n", requests);
    answer(out, 200, text);
  } else if (!strncmp(path, "/log/", 5)) {
    say(path + 5);
    answer(out, 200, "logged\n");
  } else if (!strcmp(path, "/trap")) {
    __builtin_trap();
  } else if (!strncmp(path, "/begun/", 7)) {
    static uint8_t bytes[1 << 20];
    wasi_io_streams_own_output_stream_t stream;
    begin(out, 200, &stream);
    write_all(wasi_io_streams_borrow_output_stream(stream), bytes, atoi(path + 7));
    __builtin_trap();
  } else if (!strcmp(path, "/spin")) {
    for (volatile unsigned long i = 0;; i++) {
    }
  } else if (!strcmp(path, "/memory")) {
    long mib = 0;
    for (void *some; mib < 4096 && (some = malloc(1 << 20)); mib++) memset(some, 1, 1 << 20);
    snprintf(text, sizeof text, "%ld MiB\n", mib);
    answer(out, 200, text);
  } else {
    snprintf(text, sizeof text, "hello from wasm %s\n", path);
    answer(out, 200, text);
  }
}
