"""A pure-Python loop: calls, integers, strings, a dictionary."""


def fib(n: int) -> int:
    return n if n < 2 else fib(n - 1) + fib(n - 2)


total = 0
words: dict[int, str] = {}
for i in range(150000):
    total += i * 3 % 7
    words[i & 1023] = str(i)
print(total, fib(20), len(words))
