"""What the chat says on a terminal, in English and Chinese."""

import os
from dataclasses import dataclass

from smallgpt.chat.chatbot import Source


@dataclass(frozen=True)
class Words:
    """The sentences of one language; `{}` stands for what differs each time."""

    welcome: str
    source: str
    million: str
    nothing_typed: str
    unknown: str
    forgotten: str
    joined: str
    left_out: str
    usage: str
    saved: str
    loaded: str
    exists: str
    unwritable: str
    unreadable: str
    no_file: str
    no_json: str
    nothing_said: str
    always_the_same: str
    you: str
    model: str
    help: str

    def describe(self, source: Source) -> str:
        """The line that says which model talks."""
        size, divisor = f"{source.parameters:,}", 1_000_000 if self is ENGLISH else 10_000
        if source.parameters >= divisor:
            size = self.million.format(source.parameters / divisor)
        return self.source.format(source.path, size, source.precision, source.device)


ENGLISH = Words(
    welcome="Chat: type and press Enter; exit leaves, flush forgets, /help explains.",
    source="Model: {} ({} parameters, {}, on {})",
    million="{:,.1f} million",
    nothing_typed="(nothing typed; /help explains)",
    unknown="(unknown command {}; /help lists the commands)",
    forgotten="(conversation forgotten)",
    joined="(the {} lines were taken as one message)",
    left_out="(too long for the model: the first {:,} characters were left out)",
    usage="(write: {})",
    saved="(conversation saved: {})",
    loaded="(conversation loaded: {}, {} messages; /history shows them)",
    exists="({} is there already; name another file, or delete it)",
    unwritable="({} cannot be written: {})",
    unreadable="({} cannot be read as a conversation: {})",
    no_file="it is not a file of at most 10 MB",
    no_json="it is not JSON",
    nothing_said="(nothing has been said yet)",
    always_the_same="(temperature is 0: the reply is always the same)",
    you="you",
    model="model",
    help="""\
Type what you want to say and press Enter.
  exit, quit, /exit, /bye    leave (or Ctrl-D)
  flush, /flush              forget the conversation and begin anew
  /retry                     draw the last reply anew
  /set                       show how replies are drawn
  /set temperature 0.8       change it
  /history                   show the conversation
  /save FILE                 write the conversation to a new JSON file
  /load FILE                 go on with a conversation that was saved
  /help                      this text
Ctrl-C stops a reply; at the prompt it clears the line. Several lines pasted are one message.
There is no system prompt: the model knows only what was said in the conversation.""",
)
CHINESE = Words(
    welcome="聊天：输入一句话，按回车发送；exit 退出，flush 忘掉对话，/help 查看帮助。",
    source="模型：{}（{}参数，{}，运行在 {}）",
    million="{:,.0f} 万",
    nothing_typed="（没有输入内容；/help 查看帮助）",
    unknown="（没有 {} 这个命令；/help 列出所有命令）",
    forgotten="（已忘掉之前的对话）",
    joined="（粘贴的 {} 行作为一条消息发送）",
    left_out="（消息太长，模型看不到开头的 {:,} 个字）",
    usage="（用法：{}）",
    saved="（对话已保存：{}）",
    loaded="（已载入 {} 中的 {} 条消息；/history 查看）",
    exists="（{} 已经存在；换一个文件名，或先删除它）",
    unwritable="（无法写入 {}：{}）",
    unreadable="（无法从 {} 读取对话：{}）",
    no_file="不是 10 MB 以内的普通文件",
    no_json="不是 JSON",
    nothing_said="（还没有对话）",
    always_the_same="（temperature 为 0，回复总是一样）",
    you="你",
    model="模型",
    help="""\
输入一句话，按回车发送。
  退出、exit、quit、/exit、/bye  退出（或按 Ctrl-D）
  flush、/flush                  忘掉对话，重新开始
  /retry                         重新生成上一条回复
  /set                           查看生成回复的参数
  /set temperature 0.8           修改参数
  /history                       查看对话
  /save 文件                     把对话保存为新的 JSON 文件
  /load 文件                     载入保存的对话，接着聊
  /help                          显示本帮助
Ctrl-C 停止回复；还没有发送时清空这一行。粘贴多行文字时，作为一条消息发送。
没有系统提示词：模型只知道对话里说过的话。""",
)


def of_locale() -> Words:
    """Chinese where the locale is, else English."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return CHINESE if (next(filter(None, names), "")).lower().startswith("zh") else ENGLISH
