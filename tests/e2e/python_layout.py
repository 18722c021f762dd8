"""C that compiles only where include/lockstep.h lays out its structures as examples/generate.py declares them."""
import ctypes
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, "examples")
import generate  # noqa: E402

print("#include <stddef.h>\n#include <lockstep.h>")
for kind in vars(generate).values():
    if isinstance(kind, type) and issubclass(kind, ctypes.Structure):
        struct = kind.__name__
        print(f'_Static_assert(sizeof({struct}) == {ctypes.sizeof(kind)}, "{struct}");')
        for name, _ in kind._fields_:
            field = getattr(kind, name)
            place = f"offsetof({struct}, {name}) == {field.offset} && sizeof((({struct} *)0)->{name}) == {field.size}"
            print(f'_Static_assert({place}, "{struct}.{name}");')
