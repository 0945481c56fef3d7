%% Says of each input in a file whether RabbitMQ's own parser reads it: 1 or 0, a byte each, to another file.
%% An input is four bytes of length, a byte that tells what it is, and the bytes.

main([Plugins, In, Out]) ->
    ok = code:add_pathsa(filelib:wildcard(Plugins ++ "/rabbit_common*/ebin")),
    {module, _} = code:ensure_loaded(rabbit_binary_parser),
    {ok, All} = file:read_file(In),
    ok = file:write_file(Out, [verdict(Kind, Bytes) || {Kind, Bytes} <- inputs(All)]).

inputs(<<>>) -> [];
inputs(<<Length:32, Kind, Bytes:Length/binary, Rest/binary>>) -> [{Kind, Bytes} | inputs(Rest)].

verdict(Kind, Bytes) ->
    try read(Kind, Bytes) of _ -> $1 catch _:_ -> $0 end.

read($t, Table) -> rabbit_binary_parser:parse_table(Table);
read($p, Properties) -> rabbit_framing_amqp_0_9_1:decode_properties(60, Properties);
read($m, Arguments) -> rabbit_framing_amqp_0_9_1:decode_method_fields('basic.publish', Arguments).
