// Opens a TCP connection by name: a component of the world `net`. Its arguments are HOST and PORT; it sends "ping\n", prints
// every address of the name, what comes back, and how it failed if it did.
#include "net.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void block_on(wasi_io_poll_own_pollable_t pollable) {
  wasi_io_poll_method_pollable_block(wasi_io_poll_borrow_pollable(pollable));
  wasi_io_poll_pollable_drop_own(pollable);
}

static void print_address(const wasi_sockets_network_ip_address_t *address) {
  if (address->tag == WASI_SOCKETS_NETWORK_IP_ADDRESS_IPV4) {
    const uint8_t *part = (const uint8_t *)&address->val.ipv4;
    printf("address %d.%d.%d.%d\n", part[0], part[1], part[2], part[3]);
  } else {
    const uint16_t *part = (const uint16_t *)&address->val.ipv6;
    printf("address");
    for (int i = 0; i < 8; i++) printf("%c%x", i ? ':' : ' ', part[i]);
    printf("\n");
  }
}

static bool failed(const char *what, int error) {
  printf("%s failed: error %d\n", what, error);
  return false;
}

static bool resolve(wasi_sockets_instance_network_own_network_t network, const char *host,
                    wasi_sockets_network_ip_address_t *first) {
  wasi_sockets_ip_name_lookup_own_resolve_address_stream_t stream;
  wasi_sockets_ip_name_lookup_error_code_t error;
  net_string_t name = {(uint8_t *)host, strlen(host)};
  if (!wasi_sockets_ip_name_lookup_resolve_addresses(wasi_sockets_network_borrow_network(network), &name, &stream, &error))
    return failed("resolve", error);
  for (int found = 0;;) {
    wasi_sockets_ip_name_lookup_option_ip_address_t address;
    wasi_sockets_ip_name_lookup_borrow_resolve_address_stream_t borrowed =
        wasi_sockets_ip_name_lookup_borrow_resolve_address_stream(stream);
    if (wasi_sockets_ip_name_lookup_method_resolve_address_stream_resolve_next_address(borrowed, &address, &error)) {
      if (!address.is_some) return found > 0;
      print_address(&address.val);
      if (!found++) *first = address.val;
    } else if (error == WASI_SOCKETS_NETWORK_ERROR_CODE_WOULD_BLOCK) {
      block_on(wasi_sockets_ip_name_lookup_method_resolve_address_stream_subscribe(borrowed));
    } else {
      return failed("resolve", error);
    }
  }
}

static bool talk(wasi_sockets_instance_network_own_network_t network, const wasi_sockets_network_ip_address_t *address,
                 uint16_t port) {
  wasi_sockets_tcp_error_code_t error;
  wasi_sockets_tcp_own_tcp_socket_t socket;
  bool v4 = address->tag == WASI_SOCKETS_NETWORK_IP_ADDRESS_IPV4;
  if (!wasi_sockets_tcp_create_socket_create_tcp_socket(
          v4 ? WASI_SOCKETS_NETWORK_IP_ADDRESS_FAMILY_IPV4 : WASI_SOCKETS_NETWORK_IP_ADDRESS_FAMILY_IPV6, &socket, &error))
    return failed("socket", error);
  wasi_sockets_tcp_borrow_tcp_socket_t borrowed = wasi_sockets_tcp_borrow_tcp_socket(socket);
  wasi_sockets_tcp_ip_socket_address_t to;
  if (v4) {
    to.tag = WASI_SOCKETS_NETWORK_IP_SOCKET_ADDRESS_IPV4;
    to.val.ipv4.port = port;
    to.val.ipv4.address = address->val.ipv4;
  } else {
    memset(&to, 0, sizeof to);
    to.tag = WASI_SOCKETS_NETWORK_IP_SOCKET_ADDRESS_IPV6;
    to.val.ipv6.port = port;
    to.val.ipv6.address = address->val.ipv6;
  }
  if (!wasi_sockets_tcp_method_tcp_socket_start_connect(borrowed, wasi_sockets_network_borrow_network(network), &to, &error))
    return failed("connect", error);
  wasi_sockets_tcp_tuple2_own_input_stream_own_output_stream_t streams;
  for (;;) {
    block_on(wasi_sockets_tcp_method_tcp_socket_subscribe(borrowed));
    if (wasi_sockets_tcp_method_tcp_socket_finish_connect(borrowed, &streams, &error)) break;
    if (error != WASI_SOCKETS_NETWORK_ERROR_CODE_WOULD_BLOCK) return failed("connect", error);
  }
  wasi_io_streams_stream_error_t broken;
  net_list_u8_t ping = {(uint8_t *)"ping\n", 5}, got;
  wasi_io_streams_method_output_stream_blocking_write_and_flush(wasi_io_streams_borrow_output_stream(streams.f1), &ping, &broken);
  while (wasi_io_streams_method_input_stream_blocking_read(wasi_io_streams_borrow_input_stream(streams.f0), 4096, &got, &broken)) {
    printf("received %.*s\n", (int)got.len, got.ptr);
    if (got.len && got.ptr[got.len - 1] == '\n') break;
  }
  return true;
}

bool exports_wasi_cli_run_run(void) {
  net_list_string_t args;
  wasi_cli_environment_get_arguments(&args);
  if (args.len < 3) {
    puts("usage: net HOST PORT");
    return false;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  char *host = strndup((char *)args.ptr[1].ptr, args.ptr[1].len);
  char *port = strndup((char *)args.ptr[2].ptr, args.ptr[2].len);
  wasi_sockets_instance_network_own_network_t network = wasi_sockets_instance_network_instance_network();
  wasi_sockets_network_ip_address_t address;
  bool well = resolve(network, host, &address) && talk(network, &address, (uint16_t)atoi(port));
  fflush(stdout);
  return well;
}
